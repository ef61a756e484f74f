#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <stdexcept>
#include <thread>

#include "store/fault_guard.h"
#include "store/mapped_file.h"
#include "tests/check.h"

using namespace shazam;
using shazam::testing::TemporaryDirectory;

namespace {

/// A mapped file of three pages, of which the last two have been cut off.
struct ShrunkFile {
  TemporaryDirectory directory;
  std::string path = directory.write("a", std::vector<char>(3 * 4096, 'x'));
  MappedFile file{path};

  ShrunkFile() { std::filesystem::resize_file(path, 4096); }

  char read(int64_t offset) const {
    return static_cast<char>(*static_cast<const volatile std::byte*>(file.data() + offset));
  }
};

void set_handler(void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  sigaction(SIGBUS, &action, nullptr);
}

/// How a child that runs `work` ends: its exit status, or minus the signal that ended it.
int end_of_child(const std::function<void()>& work) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    work();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace

TEST(a_page_that_is_gone_is_an_address_and_not_a_signal) {
  const ShrunkFile shrunk;
  install_fault_handler();
  char found = 0;
  CHECK(run_guarded([&] { found = shrunk.read(100); }) == nullptr);
  CHECK(found == 'x');
  for (int repeat = 0; repeat < 3; ++repeat) {
    CHECK(run_guarded([&] { found = shrunk.read(5000); }) == shrunk.file.data() + 5000);
  }
}

TEST(a_guard_inside_another_ends_only_itself) {
  const ShrunkFile shrunk;
  install_fault_handler();
  const void* inner = nullptr;
  const void* const outer = run_guarded([&] {
    inner = run_guarded([&] { shrunk.read(5000); });
    shrunk.read(9000);
  });
  CHECK(inner == shrunk.file.data() + 5000);
  CHECK(outer == shrunk.file.data() + 9000);
}

TEST(an_exception_passes_through_a_guard) {
  const ShrunkFile shrunk;
  install_fault_handler();
  bool caught = false;
  try {
    run_guarded([] { throw std::runtime_error("expected"); });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught);
  // The thread is not guarded any more.
  CHECK(end_of_child([&] {
          set_handler(SIG_DFL);
          install_fault_handler();
          shrunk.read(5000);
        }) == -SIGBUS);
}

TEST(every_thread_has_guards_of_its_own) {
  const ShrunkFile shrunk;
  install_fault_handler();
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int64_t at = 4096 + i; at < 3 * 4096; at += 64) {
        CHECK(run_guarded([&] { shrunk.read(at); }) == shrunk.file.data() + at);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(an_unguarded_fault_goes_to_the_handler_before_ours) {
  const ShrunkFile shrunk;
  const auto end = [&](void (*handler)(int)) {
    return end_of_child([&] {
      set_handler(handler);
      install_fault_handler();
      run_guarded([&] { shrunk.read(5000); });
      shrunk.read(5000);
    });
  };
  CHECK(end(SIG_DFL) == -SIGBUS);
  CHECK(end(SIG_IGN) == -SIGBUS);
  CHECK(end([](int) { _exit(7); }) == 7);
  CHECK(end([](int) {}) == -SIGBUS);  // which leaves the fault as it is
  CHECK(end([](int signal) { raise(signal); }) == -SIGBUS);  // which sends it again, as Python's
}

TEST(a_signal_that_is_sent_ends_no_guarded_work) {
  const auto end = [&](void (*handler)(int)) {
    return end_of_child([&] {
      set_handler(handler);
      install_fault_handler();
      run_guarded([] { raise(SIGBUS); });
      _exit(5);
    });
  };
  CHECK(end(SIG_DFL) == -SIGBUS);
  CHECK(end(SIG_IGN) == 5);
  CHECK(end([](int) { _exit(7); }) == 7);
}

TEST(a_handler_set_later_comes_behind_ours) {
  const ShrunkFile shrunk;
  CHECK(end_of_child([&] {
          install_fault_handler();
          set_handler([](int) { _exit(7); });
          install_fault_handler();
          _exit(run_guarded([&] { shrunk.read(5000); }) == nullptr ? 1 : 3);
        }) == 3);
}
