#include <sys/resource.h>

#include <filesystem>
#include <memory>
#include <thread>

#include "store/feature_store.h"
#include "tests/check.h"
#include "tests/store/stores.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

/// Stores of one-row files with `count` files each; row i of store k holds 1000 k + i.
struct ManyFiles {
  TemporaryDirectory directory;
  std::vector<int64_t> rows;
  std::vector<std::unique_ptr<FeatureStore>> stores;

  ManyFiles(int64_t stores_count, int64_t count) : rows(count) {
    std::iota(rows.begin(), rows.end(), 0);
    for (int64_t k = 0; k < stores_count; ++k) {
      std::vector<std::string> files;
      std::vector<Extent> extents;
      for (int64_t i = 0; i < count; ++i) {
        files.push_back(directory.write(std::to_string(k) + "_" + std::to_string(i),
                                        counting(1, expected(k, i))));
        extents.push_back({i, 0, 1, 4});
      }
      stores.push_back(std::make_unique<FeatureStore>(1, DType::Float32, files, extents));
    }
  }

  static float expected(int64_t store, int64_t row) {
    return static_cast<float>(1000 * store + row);
  }

  bool all_equal(int64_t store) const {
    return gather(*stores[store], rows) == counting(rows.size(), expected(store, 0));
  }
};

/// Sets the limit of descriptors until the end of the scope.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(int64_t soft) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit low{static_cast<rlim_t>(soft), before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &low);
  }
  ~DescriptorLimit() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_;
};

}  // namespace

TEST(all_stores_together_keep_a_quarter_of_the_descriptors) {
  const ManyFiles files(3, 60);
  const DescriptorLimit limit(80);
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (int64_t store = 0; store < 3; ++store) {
      CHECK(files.all_equal(store));
      CHECK(Descriptor::count() <= 20);
    }
  }
  CHECK(count_mappings(files.directory.path("")) == 180);  // none had to be mapped anew
}

TEST(threads_that_open_files_at_once_keep_to_the_budget) {
  const ManyFiles files(4, 60);
  const DescriptorLimit limit(120);
  std::vector<std::thread> readers;
  for (int64_t store = 0; store < 4; ++store) {
    readers.emplace_back([&, store] {
      for (int repeat = 0; repeat < 20; ++repeat) CHECK(files.all_equal(store));
    });
  }
  for (std::thread& reader : readers) reader.join();
  CHECK(Descriptor::count() <= 30);
}

TEST(a_process_without_descriptors_reads_on_without_them) {
  const ManyFiles files(2, 60);
  CHECK(files.all_equal(0));
  const DescriptorLimit limit(Descriptor::count() + 1);  // fewer than are open
  CHECK(files.all_equal(1));  // drops those of the first one
}

TEST(a_file_without_a_descriptor_is_looked_up_by_its_path) {
  const ManyFiles files(2, 60);
  const std::string path = files.directory.path("0_7");
  const DescriptorLimit limit(80);
  CHECK(files.all_equal(0) && files.all_equal(1));  // the first store's have gone
  std::filesystem::resize_file(path, 3);
  CHECK(throws(ErrorKind::Shrunk, path, [&] { gather(*files.stores[0], {7}); }));
  std::filesystem::resize_file(path, 4);
  postdate(path);
  CHECK(throws(ErrorKind::Changed, path, [&] { gather(*files.stores[0], {7}); }));
  std::filesystem::remove(files.directory.path("0_8"));
  CHECK(gather(*files.stores[0], {8}) == std::vector<float>{8});  // still mapped
  std::filesystem::copy_file(files.directory.path("1_1"), files.directory.path("0_8"));
  std::filesystem::resize_file(files.directory.path("0_8"), 1);
  CHECK(gather(*files.stores[0], {8}) == std::vector<float>{8});  // another file has the path now
}
