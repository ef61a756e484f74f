#include "store/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace shazam {
namespace {

/// One call of parallel_for. It lives on the caller's stack: the caller leaves only when no worker
/// is inside and no ticket for it is queued.
struct Job {
  const std::function<void(int64_t)>& body;
  const int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};  // written by the thread that set `failed`
  int workers_inside = 0;      // guarded by the pool's mutex

  void work() {
    try {
      for (int64_t i = next++; i < count && !failed; i = next++) body(i);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

class Pool {
 public:
  const pid_t process = getpid();

  void run(Job& job, int helpers) {
    {
      const std::lock_guard lock(mutex_);
      if (!stopping_) {
        grow(helpers);
        tickets_.insert(tickets_.end(), helpers, &job);
      }
    }
    for (int i = 0; i < helpers; ++i) has_ticket_.notify_one();
    job.work();
    std::unique_lock lock(mutex_);
    tickets_.erase(std::remove(tickets_.begin(), tickets_.end(), &job), tickets_.end());
    left_job_.wait(lock, [&] { return job.workers_inside == 0; });
  }

  /// Joins the workers. Calls of `run` that come later have no helpers.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    has_ticket_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

 private:
  void grow(int helpers) {
    try {
      while (static_cast<int>(workers_.size()) < helpers) {
        workers_.emplace_back([this] { serve(); });
      }
    } catch (const std::system_error&) {
      // The system has no more threads: those that exist, or the caller alone, do the work.
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      has_ticket_.wait(lock, [&] { return stopping_ || !tickets_.empty(); });
      if (tickets_.empty()) return;
      Job& job = *tickets_.front();
      tickets_.pop_front();
      ++job.workers_inside;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.workers_inside == 0) left_job_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable has_ticket_;
  std::condition_variable left_job_;
  std::deque<Job*> tickets_;  // one for every helper a job asks for
  std::vector<std::thread> workers_;
  bool stopping_ = false;
};

std::atomic<Pool*> current_pool{nullptr};

/// The pool itself is never freed: a thread that still runs while the process exits may use it.
struct StopAtExit {
  ~StopAtExit() {
    Pool* pool = current_pool;
    if (pool != nullptr && pool->process == getpid()) pool->stop();
  }
};

Pool& pool() {
  static const StopAtExit stop_at_exit;
  Pool* pool = current_pool;
  if (pool != nullptr && pool->process == getpid()) return *pool;
  // The first call, or the first one in a forked child. There the parent's pool is not used: its
  // threads do not exist, and its mutex may be locked by one of them.
  auto fresh = std::make_unique<Pool>();
  if (current_pool.compare_exchange_strong(pool, fresh.get())) return *fresh.release();
  return *pool;  // another thread made one in the meantime
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Job job{body, count};
  pool().run(job, static_cast<int>(std::min<int64_t>(threads, count)) - 1);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace shazam
