#pragma once

namespace shazam {

/// Installs the guard's SIGBUS handler in front of the present one, which still gets every SIGBUS
/// that occurs outside `run_guarded`. Call it before `run_guarded`, once for many calls; if it is
/// installed already, a call costs one system call.
void install_fault_handler();

namespace detail {
const void* run_guarded(void (*work)(const void*), const void* context);
}

/// Runs work(), which reads mapped memory. Returns null, or the address at which the system could
/// not provide a page: the file has shrunk, or the disk has failed. `work` is then left by a jump
/// and no destructor runs, so it must own nothing while it reads mapped memory. Exceptions pass
/// through. A call costs a few nanoseconds and no system call.
template <typename Work>
const void* run_guarded(const Work& work) {
  return detail::run_guarded([](const void* context) { (*static_cast<const Work*>(context))(); },
                             &work);
}

}  // namespace shazam
