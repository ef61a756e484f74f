#pragma once

namespace shazam {

/// Makes the guard's handler the first to see SIGBUS, in front of whatever handler is there, which
/// still gets every SIGBUS that no guard expects. Cheap when that is so already: one system call.
/// Call it before `run_guarded`, once for many calls.
void install_fault_handler();

namespace detail {
const void* run_guarded(void (*work)(const void*), const void* context);
}

/// Runs work(), which reads mapped memory. Returns null, or the address at which the system could
/// not provide a page: the file has shrunk, or the disk has failed. `work` is then abandoned where
/// it is and no destructor runs, so that it must own nothing where it touches such memory.
/// Exceptions pass through. A call costs a few nanoseconds and no system call.
template <typename Work>
const void* run_guarded(const Work& work) {
  return detail::run_guarded([](const void* context) { (*static_cast<const Work*>(context))(); },
                             &work);
}

}  // namespace shazam
