#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <numeric>
#include <thread>

#include "store/feature_store.h"
#include "store/mapped_file.h"
#include "tests/check.h"
#include "tests/store/stores.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

/// Whether a byte of a file is in the page cache, asked without touching it.
bool resident(const std::string& path, int64_t offset) {
  const MappedFile file(path);
  const int64_t page = offset / 4096 * 4096;
  unsigned char present = 0;
  mincore(const_cast<std::byte*>(file.data()) + page, 1, &present);
  return present & 1;
}

void evict(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY);
  fsync(descriptor);
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  close(descriptor);
}

/// 5000 rows of 1024 numbers in a file that is not in the page cache.
struct ColdRows {
  int64_t columns = 1024, count = 5000;
  TemporaryDirectory directory;
  std::string path = directory.write("a", counting(columns * count));
  FeatureStore store{columns, DType::Float32, {path}, {{0, 0, count, columns * 4}}};

  ColdRows() { evict(path); }

  bool in_memory(int64_t row) const { return resident(path, row * columns * 4); }
  bool on_a_disk() const { return !in_memory(0); }  // else it is a file system in memory

  /// Whether a row gets into the page cache within about a second.
  bool arrives(int64_t row) const {
    for (int wait = 0; wait < 1000 && !in_memory(row); ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return in_memory(row);
  }
};

std::vector<int64_t> run_of_rows(int64_t first, size_t count) {
  std::vector<int64_t> rows(count);
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

}  // namespace

TEST(long_runs_are_in_the_page_cache_when_reading_ahead_returns) {
  const ColdRows cold;
  if (!cold.on_a_disk()) return;
  const std::vector<int64_t> rows = run_of_rows(1500, 2000);
  cold.store.read_ahead(rows.data(), rows.size());
  for (int64_t row : rows) CHECK(cold.in_memory(row));
}

TEST(long_runs_are_read_past_the_page_cache) {
  const TemporaryDirectory directory;
  const int64_t columns = 1024, count = 5000;
  const std::string path = directory.write("a", counting(columns * count + 3));
  const FeatureStore store(columns, DType::Float32, {path}, {{0, 12, count, columns * 4}});
  std::vector<int64_t> rows = {4999, 0, 3, 1700};
  for (int64_t row = 1500; row < 4990; ++row) rows.push_back(row);
  const std::vector<float> expected = gather(store, rows);
  std::vector<float> found(expected.size());
  const Matrix out = view(found, columns);
  CHECK(!store.gather_past_cache(rows.data(), rows.size(), out, 1));
  CHECK(found == std::vector<float>(expected.size()));
  for (int threads : {1, 3}) {
    const FeatureStore again(columns, DType::Float32, {path}, {{0, 12, count, columns * 4}});
    evict(path);
    if (!resident(path, 0)) CHECK(again.gather_past_cache(rows.data(), rows.size(), out, threads));
    else again.gather(rows.data(), rows.size(), out, threads);
    CHECK(found == expected);
  }
  evict(path);
  std::filesystem::resize_file(path, 12 + 4000 * columns * 4);
  CHECK(throws(ErrorKind::Shrunk, path,
               [&] { store.gather_past_cache(rows.data(), rows.size(), out, 2); }));
}

TEST(reading_past_the_page_cache_leaves_it_as_it_is) {
  const ColdRows cold;
  if (!cold.on_a_disk()) return;
  const int64_t columns = cold.columns;
  const std::vector<int64_t> rows = run_of_rows(1500, 2000);
  std::vector<float> found(rows.size() * columns);
  CHECK(cold.store.gather_past_cache(rows.data(), rows.size(), view(found, columns), 1));
  for (size_t i = 0; i < found.size(); ++i) CHECK(found[i] == 1500 * columns + static_cast<float>(i));
  int64_t present = 0;
  for (int64_t row : rows) present += cold.in_memory(row);
  CHECK(present < 100);  // looking reads a few pages
}

TEST(rows_before_those_that_the_page_cache_lacks_are_copied_too) {
  const ColdRows cold;
  if (!cold.on_a_disk()) return;
  const int64_t columns = cold.columns, window = 8192;  // rows of 32 MiB
  std::vector<int64_t> rows(window, 7);
  for (int64_t row : run_of_rows(1000, 3000)) rows.push_back(row);
  gather(cold.store, {7});
  std::vector<float> found(rows.size() * columns);
  CHECK(cold.store.gather_past_cache(rows.data(), rows.size(), view(found, columns), 1));
  for (size_t i = 0; i < rows.size(); ++i) CHECK(found[i * columns] == rows[i] * columns);
  CHECK(!cold.in_memory(2500));
}

TEST(rows_that_left_the_page_cache_are_read_ahead) {
  const ColdRows cold;
  if (!cold.on_a_disk()) return;
  const std::vector<int64_t> rows = {4999, 17, 18, 19, 2500, 4000};
  cold.store.will_need(rows.data(), rows.size());
  for (int64_t row : rows) CHECK(cold.arrives(row));
  CHECK(!cold.in_memory(1000));
  CHECK(gather(cold.store, {4999, 17})[0] == 4999 * cold.columns);
}

TEST(of_long_runs_in_one_file_no_more_than_they_is_read_ahead) {
  const ColdRows cold;
  if (!cold.on_a_disk()) return;
  const int64_t columns = cold.columns, run = 400;  // 1.6 MB, of 20 MB
  std::vector<int64_t> rows = run_of_rows(0, run);
  for (int64_t row : run_of_rows(3000, run)) rows.push_back(row);
  cold.store.will_need(rows.data(), rows.size());
  for (int64_t row : rows) CHECK(cold.arrives(row));
  const std::vector<float> found = gather(cold.store, rows);
  for (size_t i = 0; i < rows.size(); ++i) CHECK(found[i * columns] == rows[i] * columns);
  for (int64_t row : {run + 8, run + 300, int64_t{2000}, 3000 + run + 8}) {
    CHECK(!cold.in_memory(row));
  }
}
