#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "store/store_error.h"

namespace shazam {

/// When a file was last written, in nanoseconds.
int64_t modified_ns(const struct stat& status);

enum class Access { Normal, Random, Sequential };

/// The process has no file descriptor left; closing other files helps.
class TooManyOpenFiles : public StoreError {
 public:
  explicit TooManyOpenFiles(const std::string& path);
};

/// A file that is open for reading, closed at the end of the scope. Opening never blocks, not even
/// on a pipe or a device. `flags` are of open(2). Throws Missing, Unsupported or System.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path, int flags = 0);
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }

  /// How many the process has.
  static int64_t count() { return count_; }

 private:
  static std::atomic<int64_t> count_;
  int value_;
};

/// A regular file, mapped read-only for as long as the object lives.
///
/// Reading a page beyond the end of a file that has shrunk raises SIGBUS: read the mapping only
/// inside `run_guarded`. A file that is renamed away or unlinked stays readable as it was.
///
/// The descriptor can be dropped, which leaves the mapping. The file is then looked up by its path
/// to see whether it is as it was, and first visits are served by the mapping.
class MappedFile {
 public:
  /// Throws Missing, Unsupported, System, and Truncated unless the file has `required_bytes`.
  explicit MappedFile(const std::string& path, int64_t required_bytes = 0);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }

  bool contains(const void* address) const {
    return data_ <= address && address < data_ + size_;
  }

  /// Throws Shrunk when the file has become shorter than required, and Changed when it was written
  /// since it was opened. What was read before this returns is what the file held when it was opened.
  void require_unchanged() const;

  /// Whether this byte can be read without waiting for the disk; false where the file system does
  /// not tell. The call itself may start to read the byte's page.
  bool is_cached(const std::byte* address) const;

  /// Starts reading [begin, end) into the page cache and returns at once. A hint: never fails.
  void will_need(const std::byte* begin, const std::byte* end) const;

  /// Reads [begin, end) into the page cache, from the first part on that is not there. A hint: never
  /// fails.
  void load(const std::byte* begin, const std::byte* end) const;

  void advise(Access access) const;

  /// Whether [begin, end) is best read through the mapping: all of it was visited before, or there
  /// is no descriptor. From now on it was visited.
  bool visit(const std::byte* begin, const std::byte* end) const;

  /// Copies [begin, begin + bytes) through the descriptor. The first visit of a page costs half of
  /// what mapping it does; later visits are for the mapping.
  void read(const std::byte* begin, int64_t bytes, std::byte* target) const;

  /// How much `read_past_cache` reads at a time: large enough for a disk's full rate.
  static constexpr ptrdiff_t kDirectBytes = 4 << 20;

  /// Reads [begin, end), at most kDirectBytes, from the disk without the page cache. Returns where
  /// `begin` then is, in memory of this thread that its next call overwrites. Null where that is not
  /// possible: there is no descriptor, the file system cannot, or the file has become shorter.
  const std::byte* read_past_cache(const std::byte* begin, const std::byte* end) const;

  bool has_descriptor() const { return descriptor_ != nullptr; }

  /// Hands out the descriptor to be closed. Not while another thread uses this object.
  std::unique_ptr<Descriptor> drop_descriptor() {
    past_cache_.reset();
    return std::move(descriptor_);
  }

  /// What tells this file from another one that later has the same path.
  struct Identity {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t modified_ns = 0;
  };
  Identity identity() const { return identity_; }

 private:
  std::byte* page_of(const std::byte* address) const;

  std::string path_;
  std::unique_ptr<Descriptor> descriptor_;
  mutable std::once_flag past_cache_asked_;
  mutable std::unique_ptr<Descriptor> past_cache_;  // null until asked for, and where it cannot be
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  int64_t required_bytes_;
  Identity identity_;
  bool writable_ = false;
  std::unique_ptr<std::atomic<bool>[]> visited_;  // by block
};

}  // namespace shazam
