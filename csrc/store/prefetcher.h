#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "store/feature_store.h"

namespace shazam {

/// Fills the caller's buffers with batches of rows, in order, on a thread of its own.
///
/// Batch k is made of rows[bounds[k]] ... rows[bounds[k + 1] - 1] of every source, each source
/// filling the columns of the buffer from its offset on. A buffer is free, then filled, then lent
/// by `next`, then free again by `release`. The memory of the buffers must outlive the object.
/// With `past_cache`, rows that the page cache lacks are read past it.
/// `next`, `release` and `close` may be called from different threads.
class Prefetcher {
 public:
  struct Source {
    std::shared_ptr<const FeatureStore> store;
    int64_t column;
  };
  struct Batch {
    int64_t buffer;
    int64_t rows;
  };

  Prefetcher(std::vector<Source> sources, std::vector<int64_t> rows, std::vector<int64_t> bounds,
             std::vector<Matrix> buffers, int threads, bool past_cache = false);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Waits for the next batch. Returns nothing after the last one and once closed. Throws what
  /// filling the batch threw, and Bounds when every buffer is lent: no batch could ever arrive.
  std::optional<Batch> next();

  void release(int64_t buffer);

  /// Stops the thread after the batch that it is filling. May be called again.
  void close();

 private:
  class Worker;

  bool forked() const;

  std::unique_ptr<Worker> worker_;
  int64_t process_;
};

}  // namespace shazam
