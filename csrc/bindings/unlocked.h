#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cxxabi.h>

namespace shazam {

/// Lets other Python threads run until the end of the scope.
///
/// Python up to 3.13 ends a daemon thread that asks for its lock (the GIL) while the interpreter
/// exits, by an unwinding that no destructor may let through: it would end the process. Such a
/// thread waits here instead, as in Python 3.14, until the process has exited.
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
