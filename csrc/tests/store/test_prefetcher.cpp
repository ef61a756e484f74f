#include <chrono>
#include <numeric>
#include <thread>

#include "store/prefetcher.h"
#include "tests/check.h"
#include "tests/store/stores.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

constexpr int64_t kRows = 500;
constexpr int64_t kBatch = 16;

/// Two stores of [500, 1], side by side in buffers of [16, 2]. Row r holds r and 1000 + r.
struct Fixture {
  TemporaryDirectory directory;
  std::vector<Prefetcher::Source> sources = {source("a", 0, 0), source("b", 1000, 1)};
  std::vector<int64_t> rows;
  std::vector<int64_t> bounds;
  std::vector<std::vector<float>> memory;

  Fixture() {
    for (int64_t i = 0; i < kRows; ++i) rows.push_back((i * 7) % kRows);
    for (int64_t i = 0; i < kRows; i += kBatch) bounds.push_back(i);
    bounds.push_back(kRows);
  }

  Prefetcher::Source source(const char* file, float start, int64_t column) {
    std::vector<float> values(kRows);
    std::iota(values.begin(), values.end(), start);
    return {std::make_shared<FeatureStore>(1, DType::Float32,
                                           std::vector<std::string>{directory.write(file, values)},
                                           std::vector<Extent>{{0, 0, kRows, 4}}),
            column};
  }

  std::unique_ptr<Prefetcher> start(int buffers) {
    memory.assign(buffers, std::vector<float>(kBatch * 2));
    std::vector<Matrix> views;
    for (auto& buffer : memory) {
      views.push_back({reinterpret_cast<std::byte*>(buffer.data()), kBatch, 2, 8, DType::Float32});
    }
    return std::make_unique<Prefetcher>(sources, rows, bounds, views, 2);
  }
};

}  // namespace

TEST(batches_arrive_complete_and_in_order) {
  for (int buffers = 1; buffers <= 4; ++buffers) {
    Fixture fixture;
    const auto prefetcher = fixture.start(buffers);
    int64_t at = 0;
    while (const auto batch = prefetcher->next()) {
      for (int64_t i = 0; i < batch->rows; ++i, ++at) {
        CHECK(fixture.memory[batch->buffer][2 * i] == fixture.rows[at]);
        CHECK(fixture.memory[batch->buffer][2 * i + 1] == 1000 + fixture.rows[at]);
      }
      prefetcher->release(batch->buffer);
    }
    CHECK(at == kRows);
    CHECK(!prefetcher->next());
  }
}

TEST(a_batch_that_is_filled_in_steps_arrives_complete) {
  const TemporaryDirectory directory;
  const int64_t columns = 1024, count = 6000;  // 24 MB
  const auto store = std::make_shared<FeatureStore>(
      columns, DType::Float32,
      std::vector<std::string>{directory.write("large", counting(columns * count))},
      std::vector<Extent>{{0, 0, count, columns * 4}});
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < 2 * count; ++i) rows.push_back(i * 7 % count);
  std::vector<float> memory(count * columns);
  Prefetcher prefetcher({{store, 0}}, rows, {0, count, 2 * count - 1}, {view(memory, columns)}, 2);
  int64_t at = 0;
  while (const auto batch = prefetcher.next()) {
    for (int64_t i = 0; i < batch->rows; ++i, ++at) {
      CHECK(memory[i * columns] == rows[at] * columns);
      CHECK(memory[(i + 1) * columns - 1] == (rows[at] + 1) * columns - 1);
    }
    prefetcher.release(batch->buffer);
  }
  CHECK(at == 2 * count - 1);
}

TEST(a_consumer_may_stop_at_any_batch) {
  for (int stop_after = 0; stop_after < 12; ++stop_after) {
    Fixture fixture;
    const auto prefetcher = fixture.start(3);
    for (int i = 0; i < stop_after; ++i) prefetcher->release(prefetcher->next()->buffer);
    if (stop_after % 2 == 0) prefetcher->close();
    if (stop_after % 2 == 0) CHECK(!prefetcher->next());
  }
}

TEST(no_batches_is_an_end_and_not_a_wait) {
  Fixture fixture;
  fixture.bounds = {0};
  CHECK(!fixture.start(1)->next());
}

TEST(close_ends_a_consumer_on_another_thread) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    Fixture fixture;
    const auto prefetcher = fixture.start(2);
    std::thread consumer([&] {
      while (const auto batch = prefetcher->next()) prefetcher->release(batch->buffer);
    });
    std::this_thread::sleep_for(std::chrono::microseconds(20 * repeat));
    prefetcher->close();
    consumer.join();
  }
}

TEST(an_error_comes_after_the_batches_before_it) {
  Fixture fixture;
  fixture.rows[3 * kBatch] = kRows;
  const auto prefetcher = fixture.start(2);
  for (int i = 0; i < 3; ++i) prefetcher->release(prefetcher->next()->buffer);
  CHECK(throws(ErrorKind::Bounds, "row 500", [&] { prefetcher->next(); }));
  CHECK(throws(ErrorKind::Bounds, "row 500", [&] { prefetcher->next(); }));
}

TEST(misuse_is_an_error_and_not_a_deadlock) {
  Fixture fixture;
  const auto prefetcher = fixture.start(2);
  CHECK(throws(ErrorKind::Bounds, "buffer 0 is not lent", [&] { prefetcher->release(0); }));
  CHECK(throws(ErrorKind::Bounds, "buffer 2 is not lent", [&] { prefetcher->release(2); }));
  prefetcher->next();
  prefetcher->next();
  CHECK(throws(ErrorKind::Bounds, "every buffer is lent", [&] { prefetcher->next(); }));
}

TEST(arguments_that_do_not_fit_are_refused) {
  const auto refused = [](const char* text, void (*change)(Fixture&), int buffers = 1) {
    Fixture fixture;
    change(fixture);
    return throws(ErrorKind::Bounds, text, [&] { fixture.start(buffers); });
  };
  CHECK(refused("at least one value", [](Fixture& f) { f.bounds.clear(); }));
  CHECK(refused("must rise", [](Fixture& f) { f.bounds[0] = -1; }));
  CHECK(refused("must rise", [](Fixture& f) { std::swap(f.bounds[1], f.bounds[2]); }));
  CHECK(refused("must rise", [](Fixture& f) { f.bounds.back() = kRows + 1; }));
  CHECK(refused("17 rows does not fit the 16 of", [](Fixture& f) { ++f.bounds[1]; }));
  CHECK(refused("at column 2 do not fit", [](Fixture& f) { f.sources[0].column = 2; }));
  CHECK(refused("at column -1 do not fit", [](Fixture& f) { f.sources[0].column = -1; }));
  CHECK(refused("at least one buffer", [](Fixture&) {}, 0));
}
