#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
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

/// A store of ones whose file is being rewritten with the same values.
struct RewrittenStore {
  TemporaryDirectory directory;
  std::vector<float> ones = std::vector<float>(kColumns * kRows, 1.0f);
  std::string path = directory.write("a", ones);
  std::shared_ptr<FeatureStore> store = std::make_shared<FeatureStore>(
      kColumns, DType::Float32, std::vector<std::string>{path},
      std::vector<Extent>{{0, 0, kRows, kColumns * 4}});
  std::vector<int64_t> rows;

  RewrittenStore() {
    for (int64_t i = 0; i < kRows; ++i) rows.push_back((i * 37) % kRows);
    std::vector<float> out(ones.size());
    store->gather(rows.data(), kRows, view(out), 1);  // mapped and visited
  }

  static Matrix view(std::vector<float>& out) {
    return {reinterpret_cast<std::byte*>(out.data()), static_cast<int64_t>(out.size()) / kColumns,
            kColumns, kColumns * 4, DType::Float32};
  }
};

}  // namespace

TEST(a_file_rewritten_while_it_is_gathered_is_an_error_and_never_wrong) {
  RewrittenStore rewritten;
  int errors = 0;
  {
    const Rewriter rewriter(rewritten.path, rewritten.ones);
    for (int repeat = 0; repeat < 300; ++repeat) {
      std::vector<float> out(rewritten.ones.size());
      try {
        if (repeat % 3 == 0) {
          rewritten.store->gather(rewritten.rows.data(), kRows, RewrittenStore::view(out), 4);
        } else if (repeat % 3 == 1) {
          rewritten.store->read(0, kRows, RewrittenStore::view(out), 1);
        } else {
          CHECK(rewritten.store->check_finite(0, kRows) == -1);
          continue;
        }
        CHECK(out == rewritten.ones);
      } catch (const StoreError& error) {
        CHECK(is_about_the_file(error));
        ++errors;
      }
    }
  }
  CHECK(errors > 0);
  std::vector<float> out(rewritten.ones.size());
  rewritten.store->read(0, kRows, RewrittenStore::view(out), 2);  // it is whole again
  CHECK(out == rewritten.ones);
}

/// The rest of the last page of a file reads as zeros, without a signal.
TEST(a_file_cut_within_a_page_while_it_is_gathered_is_an_error_and_never_wrong) {
  const TemporaryDirectory directory;
  const std::vector<float> ones(900, 1.0f);
  const std::string path = directory.write("a", ones);
  const FeatureStore store(9, DType::Float32, {path}, {{0, 0, 100, 36}});
  std::vector<float> out(ones.size());
  const Matrix target{reinterpret_cast<std::byte*>(out.data()), 100, 9, 36, DType::Float32};
  store.read(0, 100, target, 1);
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
  while (!done) {
    try {
      store.read(0, 100, target, 1);
      CHECK(out == ones);
    } catch (const StoreError& error) {
      CHECK(is_about_the_file(error));
      ++errors;
    }
  }
  writer.join();
  CHECK(errors > 0);
}

TEST(a_file_rewritten_while_it_is_streamed_is_an_error) {
  RewrittenStore rewritten;
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= kRows; i += 100) bounds.push_back(i);
  std::vector<float> memory(100 * kColumns);
  int errors = 0;
  const Rewriter rewriter(rewritten.path, rewritten.ones);
  for (int repeat = 0; repeat < 50; ++repeat) {
    Prefetcher prefetcher({{rewritten.store, 0}}, rewritten.rows, bounds,
                          {RewrittenStore::view(memory)}, 2);
    try {
      while (const auto batch = prefetcher.next()) prefetcher.release(batch->buffer);
    } catch (const StoreError& error) {
      CHECK(is_about_the_file(error));
      ++errors;
    }
  }
  CHECK(errors > 0);
}

TEST(an_output_that_cannot_be_written_is_an_error) {
  const RewrittenStore stored;
  const TemporaryDirectory directory;
  const std::string path = directory.write("out", std::vector<char>(4096 * 4));
  const int descriptor = open(path.c_str(), O_RDWR);
  void* const memory = mmap(nullptr, 4096 * 4, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  std::filesystem::resize_file(path, 4096);
  const Matrix out{static_cast<std::byte*>(memory), 16, kColumns, kColumns * 4, DType::Float32};
  CHECK(throws(ErrorKind::System, "output", [&] { stored.store->read(0, 16, out, 1); }));
  munmap(memory, 4096 * 4);
  close(descriptor);
}
