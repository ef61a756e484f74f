#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <thread>

#include "store/feature_store.h"
#include "store/mapped_file.h"
#include "tests/check.h"
#include "tests/store/stores.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

}  // namespace

TEST(mapped_file_reads_and_notices_a_shrunk_file) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", counting(100));
  const MappedFile file(path, 300);
  CHECK(std::memcmp(file.data(), counting(100).data(), 400) == 0);
  file.require_unchanged();
  CHECK(throws(ErrorKind::Truncated, "expected at least 401 bytes, found 400",
               [&] { MappedFile(path, 401); }));
  std::filesystem::resize_file(path, 299);
  CHECK(throws(ErrorKind::Shrunk, "found 299", [&] { file.require_unchanged(); }));
  std::filesystem::resize_file(path, 400);
  postdate(path);
  CHECK(throws(ErrorKind::Changed, path, [&] { file.require_unchanged(); }));
}

TEST(mapped_file_names_what_it_cannot_open) {
  const TemporaryDirectory directory;
  CHECK(throws(ErrorKind::Missing, "nowhere", [&] { MappedFile(directory.path("nowhere")); }));
  const std::string pipe = directory.path("pipe");
  CHECK(mkfifo(pipe.c_str(), 0600) == 0);
  const auto refused = [](const char* found, const std::string& path) {
    return throws(ErrorKind::Unsupported, found, [&] { MappedFile{path}; });
  };
  CHECK(refused("found a directory", directory.path("")));
  CHECK(refused("found a named pipe", pipe));
  CHECK(refused("found a device", "/dev/zero"));
  MappedFile(directory.write<float>("empty", {})).require_unchanged();
}

TEST(extents_are_joined_in_order) {
  const TemporaryDirectory directory;
  const std::vector<std::string> files = {directory.write("a", counting(40)),
                                          directory.write("b", counting(40, 1000))};
  // Two rows of b; none; three rows of a with a gap behind each; two of b that end with the file.
  const FeatureStore store(2, DType::Float32, files,
                           {{1, 8, 2, 8}, {0, 0, 0, 8}, {0, 16, 3, 16}, {1, 136, 2, 16}});
  CHECK(store.rows() == 7);
  const std::vector<float> expected = {1002, 1003, 1004, 1005, 4,    5,    8,
                                       9,    12,   13,   1034, 1035, 1038, 1039};
  CHECK(gather(store, {0, 1, 2, 3, 4, 5, 6}) == expected);
  CHECK(gather(store, {6, 2, 2}) == (std::vector<float>{1038, 1039, 4, 5, 4, 5}));
  std::vector<float> out(8);
  store.read(1, 5, view(out, 2), 1);
  CHECK(out == (std::vector<float>{1004, 1005, 4, 5, 8, 9, 12, 13}));
}

TEST(extents_that_cannot_be_are_refused_before_a_file_is_opened) {
  const auto refused = [](const char* text, Extent extent, int64_t columns = 2) {
    return throws(ErrorKind::Bounds, text, [&] {
      FeatureStore(columns, DType::Float32, {"/nowhere"}, {{0, 0, 1, kHuge - 1}, extent});
    });
  };
  CHECK(refused("file 1 is not", {1, 0, 1, 8}));
  CHECK(refused("file -1 is not", {-1, 0, 1, 8}));
  CHECK(refused("negative", {0, -1, 1, 8}));
  CHECK(refused("negative", {0, 0, -1, 8}));
  CHECK(refused("less than the 8 bytes", {0, 0, 1, 7}));
  CHECK(refused("less than the 8 bytes", {0, 0, 1, -8}));
  CHECK(refused("overflows", {0, kHuge, 1, 8}));
  CHECK(refused("overflows", {0, 0, kHuge / 4, 8}));
  CHECK(refused("0 values", {0, 0, 1, 8}, 0));
  CHECK(refused("values", {0, 0, 1, 8}, kHuge / 2));
  CHECK(throws(ErrorKind::Bounds, "2**63 rows", [&] {
    const Extent many{0, 0, kHuge / 4, 4};
    FeatureStore(1, DType::Float32, {"/nowhere"}, {many, many, many, many, many});
  }));
  CHECK(throws(ErrorKind::Dtype, "float64", [] { parse_dtype("float64"); }));
}

TEST(a_file_too_short_for_its_extents_is_named) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("short", counting(20));
  const FeatureStore store(2, DType::Float32, {path}, {{0, 8, 10, 8}});
  CHECK(throws(ErrorKind::Truncated, path + ": expected at least 88 bytes, found 80",
               [&] { gather(store, {0}); }));
  const FeatureStore fits(2, DType::Float32, {path}, {{0, 8, 9, 8}});
  CHECK(gather(fits, {8}) == (std::vector<float>{18, 19}));
  std::filesystem::resize_file(path, 79);
  CHECK(throws(ErrorKind::Shrunk, "found 79", [&] { gather(fits, {0}); }));
}

TEST(rows_outside_the_store_are_refused) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", counting(20));
  const FeatureStore store(2, DType::Float32, {path}, {{0, 0, 10, 8}});
  CHECK(throws(ErrorKind::Bounds, "row 10 at position 2", [&] { gather(store, {0, 9, 10}); }));
  CHECK(throws(ErrorKind::Bounds, "row -1 at position 0", [&] { gather(store, {-1}); }));
  std::vector<float> out(8);
  CHECK(throws(ErrorKind::Bounds, "[8, 12)", [&] { store.read(8, 12, view(out, 2), 1); }));
  CHECK(throws(ErrorKind::Bounds, "[4, 3)", [&] { store.check_finite(4, 3); }));
  CHECK(throws(ErrorKind::Bounds, "shape [4, 2], expected [3, 2]",
               [&] { store.read(0, 3, view(out, 2), 1); }));
}

TEST(no_more_files_stay_mapped_than_allowed) {
  const TemporaryDirectory directory;
  std::vector<std::string> files;
  std::vector<Extent> extents;
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < 20; ++i) {
    files.push_back(directory.write("lru" + std::to_string(i), counting(2, 2 * i)));
    extents.push_back({i, 0, 1, 8});
    rows.push_back((i * 7) % 20);
  }
  const FeatureStore store(2, DType::Float32, files, extents, 3);
  CHECK(count_mappings(directory.path("lru")) == 0);
  const std::vector<float> out = gather(store, rows);
  for (size_t i = 0; i < rows.size(); ++i) CHECK(out[2 * i] == 2 * rows[i]);
  CHECK(count_mappings(directory.path("lru")) == 3);
  gather(store, {4});  // the only ones mapped by now are 4 and the two before
  gather(store, {5});
  gather(store, {6});
  gather(store, {4});
  gather(store, {7});
  CHECK(count_mappings(files[4]) == 1);  // recently used
  CHECK(count_mappings(files[5]) == 0);  // least recently used
}

TEST(a_file_replaced_behind_the_store_is_refused_when_reopened) {
  const TemporaryDirectory directory;
  const std::vector<std::string> files = {directory.write("a", counting(2)),
                                          directory.write("b", counting(2))};
  const FeatureStore store(2, DType::Float32, files, {{0, 0, 1, 8}, {1, 0, 1, 8}}, 1);
  gather(store, {0});
  const std::string other = directory.write("other", counting(2, 50));
  postdate(other);
  std::filesystem::rename(other, files[0]);
  CHECK(gather(store, {0}) == counting(2));  // still mapped
  gather(store, {1});                        // evicts it
  CHECK(throws(ErrorKind::Changed, files[0], [&] { gather(store, {0}); }));
}

TEST(a_file_written_after_its_layout_was_read_is_refused_at_once) {
  const TemporaryDirectory directory;
  const std::vector<std::string> files = {directory.write("a", counting(2)),
                                          directory.write("b", counting(2))};
  struct stat status;
  stat(files[0].c_str(), &status);
  const std::vector<int64_t> modified = {modified_ns(status), 0};
  const std::vector<Extent> extents = {{0, 0, 1, 8}, {1, 0, 1, 8}};
  gather(FeatureStore(2, DType::Float32, files, extents, 2, std::nullopt, modified), {0, 1});
  const FeatureStore store(2, DType::Float32, files, extents, 2, std::nullopt, modified);
  postdate(files[0]);
  postdate(files[1]);
  gather(store, {1});  // of which nothing was known
  CHECK(throws(ErrorKind::Changed, files[0], [&] { gather(store, {0}); }));
  CHECK(throws(ErrorKind::Bounds, "found 1 for 2", [&] {
    FeatureStore(2, DType::Float32, files, extents, 2, std::nullopt, {1});
  }));
}

TEST(threads_share_a_large_gather) {
  const TemporaryDirectory directory;
  const int64_t columns = 1000, count = 2000;
  const std::string path = directory.write("a", counting(columns * count));
  const FeatureStore store(columns, DType::Float32, {path}, {{0, 0, count, columns * 4}});
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) rows.push_back((i * 37) % count);
  const auto expected = gather(store, rows, 1);
  std::vector<std::thread> callers;
  for (int threads = 2; threads <= 5; ++threads) {
    callers.emplace_back([&, threads] { CHECK(gather(store, rows, threads) == expected); });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(the_first_row_that_is_not_finite_is_found) {
  const TemporaryDirectory directory;
  std::vector<float> values = counting(30000);
  values[25001] = values[20000] = std::numeric_limits<float>::quiet_NaN();
  const FeatureStore store(3, DType::Float32, {directory.write("a", values)},
                           {{0, 0, 10000, 12}});
  CHECK(store.check_finite(0, 10000) == 6666);
  CHECK(store.check_finite(6667, 10000) == 8333);
  CHECK(store.check_finite(0, 6666) == -1);
}
