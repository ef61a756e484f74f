#pragma once

#include <chrono>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "store/feature_store.h"

/// Stores of small counting matrices, for tests.
namespace shazam::testing {

inline std::vector<float> counting(size_t count, float start = 0) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), start);
  return values;
}

inline Matrix view(std::vector<float>& values, int64_t columns) {
  return {reinterpret_cast<std::byte*>(values.data()),
          static_cast<int64_t>(values.size()) / columns, columns, columns * 4, DType::Float32};
}

inline std::vector<float> gather(const FeatureStore& store, const std::vector<int64_t>& rows,
                          int threads = 1) {
  std::vector<float> out(rows.size() * store.columns());
  store.gather(rows.data(), rows.size(), view(out, store.columns()), threads);
  return out;
}

/// The number of mappings of this process whose path contains `text`.
inline int count_mappings(const std::string& text) {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find(text) != std::string::npos;
  return count;
}

/// Changes a file's time of modification, however coarse the file system's clock is.
inline void postdate(const std::string& path) {
  const auto now = std::filesystem::file_time_type::clock::now();
  std::filesystem::last_write_time(path, now + std::chrono::hours(1));
}

}  // namespace shazam::testing
