#include "store/file_states.h"

#include <sys/stat.h>

#include <algorithm>

#include "store/thread_pool.h"

namespace shazam {
namespace {

constexpr int64_t kTaskPaths = 256;
constexpr int kThreads = 8;

bool nanoseconds(const timespec& time, int64_t* found) {
  return !__builtin_mul_overflow(time.tv_sec, int64_t{1'000'000'000}, found) &&
         !__builtin_add_overflow(*found, time.tv_nsec, found);
}

FileState state_of(const char* path) {
  FileState found{};
  struct stat status;
  if (stat(path, &status) == 0 && nanoseconds(status.st_mtim, &found.modified) &&
      nanoseconds(status.st_ctim, &found.changed)) {
    found.size = status.st_size;
    found.inode = static_cast<int64_t>(status.st_ino);
    if (found.inode >= 0) return found;
  }
  return {-1, -1, -1, -1};
}

}  // namespace

void file_states(const std::vector<std::string>& paths, FileState* states) {
  const auto count = static_cast<int64_t>(paths.size());
  parallel_for((count + kTaskPaths - 1) / kTaskPaths, kThreads, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kTaskPaths);
    for (int64_t i = task * kTaskPaths; i < end; ++i) states[i] = state_of(paths[i].c_str());
  });
}

}  // namespace shazam
