#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cxxabi.h>

namespace shazam {

/// Lets other Python threads run until the end of the scope.
///
/// Up to Python 3.13, a daemon thread that takes the interpreter's lock (the GIL) while the
/// interpreter exits is ended by a forced unwinding, which aborts the process at the first
/// destructor. Such a thread waits here instead until the process has exited, as in Python 3.14.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
      while (true) pause();
    }
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace shazam
