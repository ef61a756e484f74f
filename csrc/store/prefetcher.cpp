#include "store/prefetcher.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

namespace shazam {
namespace {

constexpr int64_t kStepBytes = 16 << 20;   // filled at a time
constexpr int kDirectReaders = 2;          // one reads while the other copies
constexpr int64_t kAheadBytes = 64 << 20;  // read ahead of it: more than a disk has at work at a time

[[noreturn]] void fail(ErrorKind kind, const std::string& message) {
  throw StoreError(kind, "prefetcher: " + message);
}

int64_t largest_batch(const std::vector<int64_t>& bounds, int64_t rows) {
  if (bounds.empty()) fail(ErrorKind::Bounds, "bounds must hold at least one value");
  if (bounds.front() < 0 || bounds.back() > rows || !std::is_sorted(bounds.begin(), bounds.end())) {
    fail(ErrorKind::Bounds, "bounds must rise from 0 or more to at most " + std::to_string(rows) +
                                ", the number of rows");
  }
  int64_t largest = 0;
  for (size_t i = 1; i < bounds.size(); ++i) {
    largest = std::max(largest, bounds[i] - bounds[i - 1]);
  }
  return largest;
}

void check_source(const Prefetcher::Source& source, const Matrix& buffer) {
  const FeatureStore& store = *source.store;
  if (source.column < 0 || source.column > buffer.columns - store.columns()) {
    fail(ErrorKind::Bounds, std::to_string(store.columns()) + " columns at column " +
                                std::to_string(source.column) + " do not fit a buffer of " +
                                std::to_string(buffer.columns));
  }
  if (buffer.dtype != DType::Float32 && buffer.dtype != store.dtype()) {
    fail(ErrorKind::Dtype, std::string("a buffer holds ") + name(buffer.dtype) +
                               ", expected float32 or " + name(store.dtype()));
  }
}

}  // namespace

class Prefetcher::Worker {
 public:
  Worker(std::vector<Source> sources, std::vector<int64_t> rows, std::vector<int64_t> bounds,
         std::vector<Matrix> buffers, int threads, bool past_cache)
      : sources_(std::move(sources)),
        rows_(std::move(rows)),
        bounds_(std::move(bounds)),
        buffers_(std::move(buffers)),
        threads_(threads),
        past_cache_(past_cache),
        lent_(buffers_.size(), false) {
    const int64_t largest = largest_batch(bounds_, static_cast<int64_t>(rows_.size()));
    if (buffers_.empty()) fail(ErrorKind::Bounds, "there must be at least one buffer");
    for (const Matrix& buffer : buffers_) {
      if (buffer.rows < largest) {
        fail(ErrorKind::Bounds, "a batch of " + std::to_string(largest) +
                                    " rows does not fit the " + std::to_string(buffer.rows) +
                                    " of a buffer");
      }
      for (const Source& source : sources_) check_source(source, buffer);
    }
    for (size_t i = 0; i < buffers_.size(); ++i) free_.push_back(i);
    thread_ = std::thread([this] { run(); });
  }

  std::optional<Batch> next() {
    std::unique_lock lock(mutex_);
    const auto finished = [&] { return error_ != nullptr || done_ == batches(); };
    changed_.wait(lock, [&] {
      return closing_ || !filled_.empty() || finished() || lent_count_ == buffers_.size();
    });
    if (closing_) return std::nullopt;
    if (!filled_.empty()) {
      const Batch batch = filled_.front();
      filled_.pop_front();
      lent_[batch.buffer] = true;
      ++lent_count_;
      return batch;
    }
    if (error_) std::rethrow_exception(error_);
    if (finished()) return std::nullopt;
    fail(ErrorKind::Bounds, "every buffer is lent; release one before asking for the next batch");
  }

  void release(int64_t buffer) {
    const std::lock_guard lock(mutex_);
    if (buffer < 0 || buffer >= static_cast<int64_t>(lent_.size()) || !lent_[buffer]) {
      fail(ErrorKind::Bounds, "buffer " + std::to_string(buffer) + " is not lent");
    }
    lent_[buffer] = false;
    --lent_count_;
    free_.push_back(buffer);
    changed_.notify_all();
  }

  void close() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    const std::lock_guard lock(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  int64_t batches() const { return static_cast<int64_t>(bounds_.size()) - 1; }

  void run() {
    try {
      for (int64_t batch = 0; batch < batches(); ++batch) {
        read_ahead(batch, bounds_[batch]);  // the disk works while this thread waits for a buffer
        const std::optional<int64_t> buffer = wait_for_buffer();
        if (!buffer) return;
        fill(batch, buffers_[*buffer]);
        const std::lock_guard lock(mutex_);
        filled_.push_back({*buffer, bounds_[batch + 1] - bounds_[batch]});
        ++done_;
        changed_.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      changed_.notify_all();
    }
  }

  /// Starts reading what is filled from `row` of this batch on: its rest and the next batch, or the
  /// first kAheadBytes of them. In this way the disk is always at work, and little memory is taken.
  void read_ahead(int64_t batch, int64_t row) {
    const int64_t end = std::min(bounds_[std::min(batch + 2, batches())], row + rows_of(kAheadBytes));
    const int64_t begin = std::max(row, announced_);
    if (begin >= end) return;
    announced_ = end;
    for (const Source& source : sources_) {
      try {
        const auto announce =
            past_cache_ ? &FeatureStore::will_need_past_cache : &FeatureStore::will_need;
        (*source.store.*announce)(rows_.data() + begin, end - begin);
      } catch (const StoreError&) {
        return;  // filling these rows will meet it again, after the batches before are delivered
      }
    }
  }

  /// How many rows of all sources there are in so many bytes, at least one.
  int64_t rows_of(int64_t bytes) const {
    int64_t row_bytes = 0;
    for (const Source& source : sources_) {
      row_bytes += source.store->columns() * item_size(source.store->dtype());
    }
    return std::max<int64_t>(1, bytes / std::max<int64_t>(1, row_bytes));
  }

  std::optional<int64_t> wait_for_buffer() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closing_ || !free_.empty(); });
    if (closing_) return std::nullopt;
    const int64_t buffer = free_.front();
    free_.pop_front();
    return buffer;
  }

  void fill(int64_t batch, const Matrix& buffer) {
    const int64_t first = bounds_[batch], stop = bounds_[batch + 1], step = rows_of(kStepBytes);
    for (int64_t row = first; row < stop; row += step) {
      read_ahead(batch, row);
      const int64_t count = std::min(step, stop - row);
      for (const Source& source : sources_) {
        Matrix part = buffer;
        part.data = buffer.row(row - first) + source.column * item_size(buffer.dtype);
        part.rows = count;
        part.columns = source.store->columns();
        const int64_t* const rows = rows_.data() + row;
        if (past_cache_ && source.store->gather_past_cache(rows, count, part, kDirectReaders)) continue;
        source.store->gather(rows, count, part, threads_);
      }
    }
  }

  const std::vector<Source> sources_;
  const std::vector<int64_t> rows_;
  const std::vector<int64_t> bounds_;
  const std::vector<Matrix> buffers_;
  const int threads_;
  const bool past_cache_;
  int64_t announced_ = 0;  // rows before this one were read ahead; of `thread_` alone

  std::mutex mutex_;  // guards all down to closing_
  std::condition_variable changed_;
  std::deque<int64_t> free_;
  std::deque<Batch> filled_;
  std::vector<bool> lent_;
  size_t lent_count_ = 0;
  int64_t done_ = 0;  // batches filled so far
  std::exception_ptr error_;
  bool closing_ = false;

  std::mutex join_mutex_;
  std::thread thread_;
};

Prefetcher::Prefetcher(std::vector<Source> sources, std::vector<int64_t> rows,
                       std::vector<int64_t> bounds, std::vector<Matrix> buffers, int threads,
                       bool past_cache)
    : worker_(std::make_unique<Worker>(std::move(sources), std::move(rows), std::move(bounds),
                                       std::move(buffers), threads, past_cache)),
      process_(getpid()) {}

Prefetcher::~Prefetcher() { close(); }

bool Prefetcher::forked() const { return process_ != getpid(); }

std::optional<Prefetcher::Batch> Prefetcher::next() {
  if (forked()) fail(ErrorKind::System, "its thread does not exist in a forked process");
  return worker_->next();
}

void Prefetcher::release(int64_t buffer) {
  if (!forked()) worker_->release(buffer);
}

void Prefetcher::close() {
  if (!forked()) {
    worker_->close();
  } else {
    // The thread does not exist here, and a mutex may be locked that nobody will unlock: the memory is
    // left as it is.
    static_cast<void>(worker_.release());
  }
}

}  // namespace shazam
