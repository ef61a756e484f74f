#include "store/fault_guard.h"

#include <csetjmp>
#include <csignal>

#include <atomic>

namespace shazam {
namespace {

constexpr int kMostRepeats = 16;  // faults at one address that another handler may leave as they are

struct Guard {
  sigjmp_buf place;
  const void* volatile address = nullptr;
};

/// What the handler knows about its thread.
struct ThreadState {
  Guard* volatile guard;   // of the innermost run_guarded
  const void* last_fault;  // that was handed on
  int repeats;
  bool handing_on;
};

// The model "initial-exec", since other models may allocate memory when a handler first asks.
__attribute__((tls_model("initial-exec"))) thread_local ThreadState state{};

// The handler that was there before. What it points to is never freed: a handler may be reading it.
std::atomic<const struct sigaction*> previous{nullptr};

/// Lets the system end the process: by the same fault, which repeats on return, or by the signal.
void use_default(int signal, bool is_fault) {
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  if (!is_fault) raise(signal);
}

/// A SIGBUS that no guard expects goes to the handler that was there before. That one may end by
/// sending the signal again (Python's faulthandler), or do nothing, so that the fault repeats.
void hand_on(int signal, siginfo_t* info, void* context) {
  const bool is_fault = info->si_code > 0;  // and not a signal that somebody sent
  if (is_fault) {
    state.repeats = info->si_addr == state.last_fault ? state.repeats + 1 : 0;
    state.last_fault = info->si_addr;
  }
  const struct sigaction* const action = previous.load();
  const bool is_circle = is_fault ? state.repeats > kMostRepeats : state.handing_on;
  if (is_circle) return use_default(signal, is_fault);
  if (action->sa_flags & SA_SIGINFO) {
    state.handing_on = true;
    action->sa_sigaction(signal, info, context);
    state.handing_on = false;
  } else if (action->sa_handler == SIG_DFL || (is_fault && action->sa_handler == SIG_IGN)) {
    use_default(signal, is_fault);
  } else if (action->sa_handler != SIG_IGN) {
    state.handing_on = true;
    action->sa_handler(signal);
    state.handing_on = false;
  }
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  Guard* const guard = state.guard;
  if (guard == nullptr || info->si_code != BUS_ADRERR) return hand_on(signal, info, context);
  guard->address = info->si_addr;
  siglongjmp(guard->place, 1);
}

/// The thread's guard until the end of the scope.
class Scope {
 public:
  explicit Scope(Guard* guard) : outer_(state.guard) { state.guard = guard; }
  ~Scope() { state.guard = outer_; }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Guard* const outer_;
};

}  // namespace

void install_fault_handler() {
  struct sigaction found;
  sigaction(SIGBUS, nullptr, &found);
  if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_bus_error) return;
  previous = new struct sigaction(found);
  struct sigaction ours{};
  ours.sa_sigaction = on_bus_error;
  // SA_NODEFER: the signal is not blocked when the handler is left by a jump.
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGBUS, &ours, nullptr);
}

namespace detail {

const void* run_guarded(void (*work)(const void*), const void* context) {
  Guard guard;
  const Scope scope(&guard);
  if (sigsetjmp(guard.place, 0) == 0) work(context);
  return guard.address;
}

}  // namespace detail
}  // namespace shazam
