#pragma once

#include <stdexcept>
#include <string>

namespace shazam {

enum class ErrorKind {
  Missing,      // no such file
  Truncated,    // a file is shorter than its extents need
  Shrunk,       // a file was long enough when it was opened, and no longer is
  Changed,      // a file was written or replaced after it was first opened
  Unsupported,  // a directory, a pipe or a device in place of a file
  Bounds,       // a row, an extent or an array size outside what it refers to
  Dtype,        // an unknown dtype, or an array whose dtype or memory layout does not fit
  System,       // anything else the operating system refused
};

inline const char* name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::Missing: return "missing";
    case ErrorKind::Truncated: return "truncated";
    case ErrorKind::Shrunk: return "shrunk";
    case ErrorKind::Changed: return "changed";
    case ErrorKind::Unsupported: return "unsupported";
    case ErrorKind::Bounds: return "bounds";
    case ErrorKind::Dtype: return "dtype";
    case ErrorKind::System: break;
  }
  return "system";
}

/// The one exception type of the core. The kind tells the caller which error of its own to raise.
class StoreError : public std::runtime_error {
 public:
  StoreError(ErrorKind kind, const std::string& message)
      : std::runtime_error(message), kind_(kind) {}

  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

[[noreturn]] inline void throw_output_lost() {
  throw StoreError(ErrorKind::System, "the memory of the output cannot be written; if it is mapped, "
                                      "its file has shrunk or its disk is full");
}

}  // namespace shazam
