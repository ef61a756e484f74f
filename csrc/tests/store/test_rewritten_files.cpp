#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "store/feature_store.h"
#include "store/prefetcher.h"
#include "tests/check.h"

using namespace shazam;
using shazam::testing::TemporaryDirectory;
using shazam::testing::throws;

namespace {

/// Cuts a file short and fills it again, over and over, until the end of the scope.
class Rewriter {
 public:
  Rewriter(std::string path, std::vector<float> values)
      : path_(std::move(path)), values_(std::move(values)), thread_([this] { run(); }) {}
  ~Rewriter() {
    stop_ = true;
    thread_.join();
  }

 private:
  void run() {
    while (!stop_) {
      std::ofstream(path_, std::ios::binary)
          .write(reinterpret_cast<const char*>(values_.data()), values_.size() * sizeof(float));
    }
  }

  std::string path_;
  std::vector<float> values_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

bool is_about_the_file(const StoreError& error) {
  return error.kind() == ErrorKind::Shrunk || error.kind() == ErrorKind::Changed ||
         error.kind() == ErrorKind::Truncated;
}

constexpr int64_t kColumns = 256, kRows = 4000;

/// A file of ones, to be rewritten with the same values.
struct OnesFile {
  TemporaryDirectory directory;
  std::vector<float> ones = std::vector<float>(kColumns * kRows, 1.0f);
  std::string path = directory.write("a", ones);
  std::vector<int64_t> rows;

  OnesFile() {
    for (int64_t i = 0; i < kRows; ++i) rows.push_back((i * 37) % kRows);
  }

  std::shared_ptr<FeatureStore> store() const {
    return std::make_shared<FeatureStore>(kColumns, DType::Float32, std::vector<std::string>{path},
                                          std::vector<Extent>{{0, 0, kRows, kColumns * 4}});
  }

  static Matrix view(std::vector<float>& out) {
    return {reinterpret_cast<std::byte*>(out.data()), static_cast<int64_t>(out.size()) / kColumns,
            kColumns, kColumns * 4, DType::Float32};
  }
};

/// Calls `work` with one new store after another, as often with each as it is read without an
/// error: the first time through the descriptor, then through the mapping. Returns the errors.
int count_errors(const OnesFile& file, int repeats,
                 const std::function<void(std::shared_ptr<FeatureStore>)>& work) {
  int errors = 0;
  const Rewriter rewriter(file.path, file.ones);
  auto store = file.store();
  for (int repeat = 0; repeat < repeats; ++repeat) {
    try {
      work(store);
    } catch (const StoreError& error) {
      CHECK(is_about_the_file(error));
      ++errors;
      store = file.store();
    }
  }
  return errors;
}

}  // namespace

TEST(a_file_rewritten_while_it_is_gathered_is_an_error_and_never_wrong) {
  const OnesFile file;
  std::vector<float> out(file.ones.size());
  CHECK(count_errors(file, 150, [&](auto store) {
          store->gather(file.rows.data(), kRows, OnesFile::view(out), 4);
          CHECK(out == file.ones);
        }) > 0);
  CHECK(count_errors(file, 150, [&](auto store) {
          store->read(0, kRows, OnesFile::view(out), 1);
          CHECK(out == file.ones);
        }) > 0);
  CHECK(count_errors(file, 150, [](auto store) { CHECK(store->check_finite(0, kRows) == -1); }) > 0);
  file.store()->read(0, kRows, OnesFile::view(out), 2);  // it is whole again
  CHECK(out == file.ones);
}

TEST(a_file_rewritten_while_it_is_streamed_is_an_error) {
  const OnesFile file;
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= kRows; i += 100) bounds.push_back(i);
  std::vector<float> memory(100 * kColumns);
  CHECK(count_errors(file, 50, [&](auto store) {
          Prefetcher prefetcher({{store, 0}}, file.rows, bounds, {OnesFile::view(memory)}, 2);
          while (const auto batch = prefetcher.next()) prefetcher.release(batch->buffer);
        }) > 0);
}

/// The rest of the last page of a file reads as zeros, without a signal.
TEST(a_file_cut_within_a_page_while_it_is_gathered_is_an_error_and_never_wrong) {
  const TemporaryDirectory directory;
  const std::vector<float> ones(900, 1.0f);
  const std::string path = directory.write("a", ones);
  std::vector<float> out(ones.size());
  const Matrix target{reinterpret_cast<std::byte*>(out.data()), 100, 9, 36, DType::Float32};
  std::atomic<bool> done{false};
  std::thread writer([&] {
    using std::chrono::milliseconds;
    for (int cut = 0; cut < 60; ++cut) {
      std::this_thread::sleep_for(milliseconds(12));  // longer than the clock of files ticks
      std::filesystem::resize_file(path, 4);
      std::this_thread::sleep_for(milliseconds(1));
      std::ofstream(path, std::ios::binary | std::ios::in)
          .write(reinterpret_cast<const char*>(ones.data()), 3600);
    }
    done = true;
  });
  int errors = 0;
  std::unique_ptr<FeatureStore> store;
  while (!done) {
    try {
      if (!store) {
        store.reset(new FeatureStore(9, DType::Float32, {path}, {{0, 0, 100, 36}}));
      }
      store->read(0, 100, target, 1);
      CHECK(out == ones);
    } catch (const StoreError& error) {
      CHECK(is_about_the_file(error));
      ++errors;
      store.reset();
    }
  }
  writer.join();
  CHECK(errors > 0);
}

TEST(an_output_that_cannot_be_written_is_an_error) {
  const OnesFile file;
  const TemporaryDirectory directory;
  const std::string path = directory.write("out", std::vector<char>(4096 * 4));
  const int descriptor = open(path.c_str(), O_RDWR);
  void* const memory = mmap(nullptr, 4096 * 4, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  std::filesystem::resize_file(path, 4096);
  const Matrix out{static_cast<std::byte*>(memory), 16, kColumns, kColumns * 4, DType::Float32};
  const auto store = file.store();
  std::vector<float> first(16 * kColumns);
  CHECK(throws(ErrorKind::System, "output", [&] { store->read(0, 16, out, 1); }));
  store->read(0, 16, OnesFile::view(first), 1);  // from now on it is copied from the mapping
  CHECK(throws(ErrorKind::System, "output", [&] { store->read(0, 16, out, 1); }));
  munmap(memory, 4096 * 4);
  close(descriptor);
}
