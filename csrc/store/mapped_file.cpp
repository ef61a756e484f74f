#include "store/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace shazam {
namespace {

constexpr int64_t kBlockBytes = 64 << 10;  // what the kernel maps around one page fault

[[noreturn]] void throw_system_error(const std::string& path, int code) {
  if (code == ENOENT || code == ENOTDIR) {
    throw StoreError(ErrorKind::Missing, path + ": no such file");
  }
  if (code == EMFILE || code == ENFILE) throw TooManyOpenFiles(path);
  throw StoreError(ErrorKind::System, path + ": " + std::strerror(code));
}

struct stat status_of(const std::string& path, int descriptor) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) throw_system_error(path, errno);
  return status;
}

}  // namespace

Descriptor::Descriptor(const std::string& path)
    : value_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (value_ < 0) throw_system_error(path, errno);
}

Descriptor::~Descriptor() { close(value_); }

TooManyOpenFiles::TooManyOpenFiles(const std::string& path)
    : StoreError(ErrorKind::System, path + ": too many open files; raise `ulimit -n`") {}

MappedFile::MappedFile(const std::string& path) : path_(path), descriptor_(path) {
  const struct stat status = status_of(path, descriptor_.get());
  if (!S_ISREG(status.st_mode)) throw StoreError(ErrorKind::System, path + ": not a regular file");
  size_ = status.st_size;
  identity_ = {status.st_ino, status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec};
  if (size_ > 0) {  // an empty file cannot be mapped, and nothing can be read from it
    void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_.get(), 0);
    if (address == MAP_FAILED) throw_system_error(path, errno);
    data_ = static_cast<std::byte*>(address);
  }
  writable_ = access(path.c_str(), W_OK) == 0;
  visited_ = std::make_unique<std::atomic<bool>[]>(size_ / kBlockBytes + 1);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

void MappedFile::require(int64_t bytes) const {
  const int64_t readable = std::min<int64_t>(size_, status_of(path_, descriptor_.get()).st_size);
  if (readable >= bytes) return;
  throw StoreError(ErrorKind::Truncated, path_ + ": expected at least " + std::to_string(bytes) +
                                             " bytes, found " + std::to_string(readable));
}

bool MappedFile::is_cached(const std::byte* address) const {
  char byte;
  const iovec target{&byte, 1};
  if (preadv2(descriptor_.get(), &target, 1, address - data_, RWF_NOWAIT) == 1) return true;
  // Files in memory and on network file systems cannot be asked that way. The other way is open to
  // those who may write the file; for others mincore reports every page as present.
  if (errno != EOPNOTSUPP || !writable_) return false;
  unsigned char present = 0;
  mincore(page_of(address), 1, &present);
  return present & 1;
}

void MappedFile::will_need(const std::byte* begin, const std::byte* end) const {
  // The kernel starts no more than one readahead window per call (128 KiB unless tuned).
  constexpr ptrdiff_t kStep = 128 << 10;
  for (std::byte* at = page_of(begin); at < end; at += kStep) {
    madvise(at, std::min(kStep, end - at), MADV_WILLNEED);
  }
}

bool MappedFile::visit(const std::byte* begin, const std::byte* end) const {
  bool before = true;
  for (int64_t block = (begin - data_) / kBlockBytes; block <= (end - 1 - data_) / kBlockBytes; ++block) {
    if (visited_[block].load(std::memory_order_relaxed)) continue;
    visited_[block].store(true, std::memory_order_relaxed);
    before = false;
  }
  return before;
}

void MappedFile::read(const std::byte* begin, int64_t bytes, std::byte* target) const {
  off_t offset = begin - data_;
  while (bytes > 0) {
    const ssize_t count = pread(descriptor_.get(), target, bytes, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_system_error(path_, errno);
    if (count == 0) throw StoreError(ErrorKind::Truncated, path_ + ": shrank while it was read");
    bytes -= count;
    offset += count;
    target += count;
  }
}

std::byte* MappedFile::page_of(const std::byte* address) const {
  static const ptrdiff_t page = sysconf(_SC_PAGESIZE);
  return data_ + (address - data_) / page * page;
}

void MappedFile::advise(Access access) const {
  if (data_ == nullptr || access == Access::Normal) return;
  madvise(data_, size_, access == Access::Random ? MADV_RANDOM : MADV_SEQUENTIAL);
}

}  // namespace shazam
