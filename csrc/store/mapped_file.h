#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "store/store_error.h"

namespace shazam {

enum class Access { Normal, Random, Sequential };

/// The process has no file descriptor left; closing other files helps.
class TooManyOpenFiles : public StoreError {
 public:
  explicit TooManyOpenFiles(const std::string& path);
};

/// An open file, closed at the end of the scope.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path);
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }

 private:
  int value_;
};

/// A regular file, mapped read-only for as long as the object lives.
///
/// The descriptor stays open just as long: `fstat` on it is what tells that the mapped file has
/// shrunk, where touching a page beyond its new end would be a SIGBUS. A file that is renamed
/// away or unlinked stays readable as it was.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }

  /// Throws Truncated unless the first `bytes` bytes are mapped and still in the file.
  void require(int64_t bytes) const;

  /// Whether this byte can be read without waiting for the disk; false where the file system does
  /// not tell. If not, the question itself may start the reading of its page.
  bool is_cached(const std::byte* address) const;

  /// Starts reading [begin, end) into the page cache and returns at once. A hint: never fails.
  void will_need(const std::byte* begin, const std::byte* end) const;

  void advise(Access access) const;

  /// Whether all of [begin, end) was visited before; from now on it was.
  bool visit(const std::byte* begin, const std::byte* end) const;

  /// Copies [begin, begin + bytes) through the descriptor. The first visit of a page costs half of
  /// what mapping it does; later visits are for the mapping.
  void read(const std::byte* begin, int64_t bytes, std::byte* target) const;

  /// What tells this file from another one that later has the same path.
  struct Identity {
    uint64_t inode = 0;
    int64_t modified_ns = 0;
  };
  Identity identity() const { return identity_; }

 private:
  std::byte* page_of(const std::byte* address) const;

  std::string path_;
  Descriptor descriptor_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  Identity identity_;
  bool writable_ = false;
  std::unique_ptr<std::atomic<bool>[]> visited_;  // by block
};

}  // namespace shazam
