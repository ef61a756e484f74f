#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace shazam {

/// Runs body(task) for tasks [0, count) on up to `threads` threads, the caller among them: those of the
/// OpenMP runtime that the process has, if any, otherwise those of the core's pool. Rethrows the
/// first exception. A library whose threads wait for their next task by spinning, as those of OpenMP
/// do, takes a core from any other pool.
void run_tasks(int64_t count, int threads, const std::function<void(int64_t)>& body);

/// Bytes that a task should touch: with fewer, waking a thread (about 10 microseconds) does not
/// pay.
constexpr int64_t kTaskBytes = int64_t{1} << 20;

inline int64_t patches_per_task(int64_t bytes_per_patch) {
  return std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, bytes_per_patch));
}

/// Runs body(first, last) over patches [0, patches) cut into tasks whose bounds do not depend on
/// the number of threads.
template <typename Body>
void for_patches(int64_t patches, int64_t bytes_per_patch, int threads, const Body& body) {
  const int64_t size = patches_per_task(bytes_per_patch);
  run_tasks((patches + size - 1) / size, threads, [&](int64_t task) {
    body(task * size, std::min(patches, (task + 1) * size));
  });
}

}  // namespace shazam
