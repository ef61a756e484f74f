#include "store/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace shazam {
namespace {

constexpr int64_t kBlockBytes = 64 << 10;    // what the kernel maps around one page fault
constexpr ptrdiff_t kDirectGrain = 4 << 10;  // reads past the page cache are in whole blocks of a disk

[[noreturn]] void throw_system_error(const std::string& path, int code) {
  if (code == ENOENT || code == ENOTDIR) {
    throw StoreError(ErrorKind::Missing, path + ": no such file");
  }
  if (code == EMFILE || code == ENFILE) throw TooManyOpenFiles(path);
  if (code == ENXIO || code == ENODEV) {
    throw StoreError(ErrorKind::Unsupported, path + ": expected a file, found a device or a socket");
  }
  throw StoreError(ErrorKind::System, path + ": " + std::strerror(code));
}

struct stat status_of(const std::string& path, int descriptor) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) throw_system_error(path, errno);
  return status;
}

/// Memory that a disk reads to, in huge pages where the system has them: a request then has a few
/// long pieces instead of one for every 4 KiB, which raised the rate of a virtual disk from 1.2 to
/// 3.2 GB/s.
class DirectMemory {
 public:
  explicit DirectMemory(size_t bytes) {
    constexpr size_t kHuge = 2 << 20;
    bytes = (bytes + kHuge - 1) / kHuge * kHuge;
    data_ = static_cast<std::byte*>(std::aligned_alloc(kHuge, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~DirectMemory() { std::free(data_); }
  DirectMemory(const DirectMemory&) = delete;
  DirectMemory& operator=(const DirectMemory&) = delete;

  std::byte* get() const { return data_; }

 private:
  std::byte* data_;
};

[[noreturn]] void throw_short(ErrorKind kind, const std::string& path, int64_t expected,
                              int64_t found) {
  throw StoreError(kind, path + ": expected at least " + std::to_string(expected) +
                             " bytes, found " + std::to_string(found));
}

const char* type_name(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a named pipe";
  return "a device";
}

}  // namespace

int64_t modified_ns(const struct stat& status) {
  return status.st_mtim.tv_sec * int64_t{1'000'000'000} + status.st_mtim.tv_nsec;
}

std::atomic<int64_t> Descriptor::count_{0};

// O_NONBLOCK: a named pipe that nobody writes to would block. It changes nothing for files.
Descriptor::Descriptor(const std::string& path, int flags)
    : value_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags)) {
  if (value_ < 0) throw_system_error(path, errno);
  ++count_;
}

Descriptor::~Descriptor() {
  close(value_);
  --count_;
}

TooManyOpenFiles::TooManyOpenFiles(const std::string& path)
    : StoreError(ErrorKind::System, path + ": too many open files; raise `ulimit -n`") {}

MappedFile::MappedFile(const std::string& path, int64_t required_bytes)
    : path_(path),
      descriptor_(std::make_unique<Descriptor>(path)),
      required_bytes_(required_bytes) {
  const struct stat status = status_of(path, descriptor_->get());
  if (!S_ISREG(status.st_mode)) {
    throw StoreError(ErrorKind::Unsupported,
                     path + ": expected a file, found " + type_name(status.st_mode));
  }
  size_ = status.st_size;
  if (size_ < required_bytes) throw_short(ErrorKind::Truncated, path, required_bytes, size_);
  identity_ = {status.st_dev, status.st_ino, modified_ns(status)};
  writable_ = access(path.c_str(), W_OK) == 0;
  visited_ = std::make_unique<std::atomic<bool>[]>(size_ / kBlockBytes + 1);
  if (size_ > 0) {  // an empty file cannot be mapped, and nothing can be read from it
    void* address = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_->get(), 0);
    if (address == MAP_FAILED) throw_system_error(path, errno);
    data_ = static_cast<std::byte*>(address);
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

void MappedFile::require_unchanged() const {
  struct stat now;
  if (descriptor_) {
    now = status_of(path_, descriptor_->get());
  } else if (stat(path_.c_str(), &now) != 0 || now.st_dev != identity_.device ||
             now.st_ino != identity_.inode) {
    return;  // the path leads to another file or to none: ours cannot be asked any more
  }
  if (now.st_size < required_bytes_) {
    throw_short(ErrorKind::Shrunk, path_, required_bytes_, now.st_size);
  }
  if (modified_ns(now) == identity_.modified_ns) return;
  throw StoreError(ErrorKind::Changed,
                   path_ + ": was written after it was opened; open it again when it is complete");
}

bool MappedFile::is_cached(const std::byte* address) const {
  if (descriptor_) {
    char byte;
    const iovec target{&byte, 1};
    if (preadv2(descriptor_->get(), &target, 1, address - data_, RWF_NOWAIT) == 1) return true;
    if (errno != EOPNOTSUPP) return false;
  }
  // Not possible for files in memory and on network file systems. There, mincore tells those who
  // may write the file; to others it reports every page as present.
  if (!writable_) return false;
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

// Plain reads: the kernel reads ahead of them in large blocks, at a third of what will_need costs.
void MappedFile::load(const std::byte* begin, const std::byte* end) const {
  if (!descriptor_) return will_need(begin, end);
  constexpr ptrdiff_t kStep = 256 << 10;  // stays in the CPU's cache
  thread_local std::vector<std::byte> scratch(kStep);
  bool cold = false;
  for (const std::byte* at = begin; at < end;) {
    const ptrdiff_t step = std::min(kStep, end - at);
    if (!cold && is_cached(at)) {
      at += step;
      continue;
    }
    cold = true;
    const ssize_t count = pread(descriptor_->get(), scratch.data(), step, at - data_);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // whoever needs these bytes meets it again
    at += count;
  }
}

bool MappedFile::visit(const std::byte* begin, const std::byte* end) const {
  if (!descriptor_) return true;
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
    const ssize_t count = pread(descriptor_->get(), target, bytes, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EFAULT) throw_output_lost();
    if (count < 0) throw_system_error(path_, errno);
    if (count == 0) throw StoreError(ErrorKind::Shrunk, path_ + ": shrank while it was read");
    bytes -= count;
    offset += count;
    target += count;
  }
}

const std::byte* MappedFile::read_past_cache(const std::byte* begin, const std::byte* end) const {
  if (!descriptor_) return nullptr;
  std::call_once(past_cache_asked_, [&] {
    try {  // the path may lead to another file by now, this one leads to ours
      const std::string same = "/proc/self/fd/" + std::to_string(descriptor_->get());
      past_cache_ = std::make_unique<Descriptor>(same, O_DIRECT);
    } catch (const StoreError&) {  // the file system cannot
    }
  });
  if (!past_cache_) return nullptr;
  static const ptrdiff_t grain = std::max<ptrdiff_t>(sysconf(_SC_PAGESIZE), kDirectGrain);
  thread_local const DirectMemory scratch(kDirectBytes + 2 * grain);
  const ptrdiff_t skipped = (begin - data_) % grain;
  const ptrdiff_t wanted = skipped + (end - begin);
  const ptrdiff_t whole = (wanted + grain - 1) / grain * grain;
  for (ptrdiff_t done = 0; done < wanted;) {
    const off_t from = begin - data_ - skipped + done;
    const ssize_t count = pread(past_cache_->get(), scratch.get() + done, whole - done, from);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return nullptr;
    done += count;
    if (done < wanted && done % grain != 0) return nullptr;  // the end of the file
  }
  return scratch.get() + skipped;
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
