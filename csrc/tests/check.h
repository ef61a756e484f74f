#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "store/store_error.h"

namespace shazam::testing {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}

inline int failures = 0;

inline void check(bool passed, const char* text, const char* file, int line) {
  if (passed) return;
  ++failures;
  std::printf("%s:%d: failed: %s\n", file, line, text);
}

/// True when `work` throws a StoreError of this kind whose message contains `text`.
inline bool throws(ErrorKind kind, const std::string& text, const std::function<void()>& work) {
  try {
    work();
  } catch (const StoreError& error) {
    const bool expected =
        error.kind() == kind && std::string(error.what()).find(text) != std::string::npos;
    if (!expected) std::printf("found %s: %s\n", name(error.kind()), error.what());
    return expected;
  }
  return false;
}

/// A directory that is removed with all its files at the end of the scope.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "shazam_fast_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }

  template <typename T>
  std::string write(const std::string& file, const std::vector<T>& values) const {
    const std::string path = path_ / file;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    return path;
  }

  std::string path(const std::string& file) const { return path_ / file; }

 private:
  std::filesystem::path path_;
};

}  // namespace shazam::testing

#define CHECK(condition) \
  shazam::testing::check(static_cast<bool>(condition), #condition, __FILE__, __LINE__)

#define TEST(name)                                                                           \
  static void name();                                                                        \
  static const bool name##_added = (shazam::testing::tests().push_back({#name, name}), true); \
  static void name()
