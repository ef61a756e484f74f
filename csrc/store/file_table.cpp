#include "store/file_table.h"

#include <pthread.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_set>

namespace shazam {
namespace {

/// All tables of the process under one lock. One, because they share the descriptors, and because a
/// forked child can only be given a lock whose state is known. It is never held while a file is
/// opened or closed.
struct Registry {
  std::mutex mutex;
  std::unordered_set<FileTable*> tables;
};

Registry& registry() {
  static Registry* const instance = [] {
    // Another thread may hold the lock when the process forks; the child would wait for it forever.
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] { registry().mutex.unlock(); });
    return new Registry;  // never freed: a table may outlive every static object
  }();
  return *instance;
}

/// How many descriptors all tables may keep: the rest of the process needs some too.
int64_t descriptor_budget() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  constexpr rlim_t kMost = 1 << 20;  // the limit may be infinity
  return static_cast<int64_t>(std::clamp<rlim_t>(limit.rlim_cur / 4, 1, kMost));
}

}  // namespace

void Manifest::require_unchanged() const {
  struct stat now;
  if (stat(path.c_str(), &now) != 0) return;
  if (shazam::modified_ns(now) == modified_ns && now.st_ino == inode) return;
  throw StoreError(ErrorKind::Changed, path + ": written anew after it was opened; open it again");
}

FileTable::FileTable(std::vector<std::string> paths, int max_open, std::optional<Manifest> manifest,
                     const std::vector<int64_t>& modified)
    : manifest_(std::move(manifest)), max_open_(max_open) {
  if (max_open < 1) throw StoreError(ErrorKind::Bounds, "max_open must be at least 1");
  if (!modified.empty() && modified.size() != paths.size()) {
    throw StoreError(ErrorKind::Bounds, "one time per file expected, found " +
                                            std::to_string(modified.size()) + " for " +
                                            std::to_string(paths.size()));
  }
  files_.resize(paths.size());
  for (size_t i = 0; i < paths.size(); ++i) {
    files_[i].path = std::move(paths[i]);
    if (!modified.empty()) files_[i].modified_ns = modified[i];
  }
  const std::lock_guard lock(registry().mutex);
  registry().tables.insert(this);
}

FileTable::~FileTable() {
  const std::lock_guard lock(registry().mutex);
  registry().tables.erase(this);
}

void FileTable::require(int64_t file, int64_t bytes) {
  files_[file].required_bytes = std::max(files_[file].required_bytes, bytes);
}

std::shared_ptr<const MappedFile> FileTable::open(int64_t file) {
  if (auto mapping = find(file)) return mapping;
  auto mapping = map(files_[file].path, files_[file].required_bytes);
  if (manifest_) manifest_->require_unchanged();
  return insert(file, std::move(mapping));
}

std::shared_ptr<MappedFile> FileTable::find(int64_t file) {
  const std::lock_guard lock(registry().mutex);
  File& entry = files_[file];
  if (entry.mapping) recent_.splice(recent_.begin(), recent_, entry.recency);
  return entry.mapping;
}

std::shared_ptr<MappedFile> FileTable::map(const std::string& path, int64_t required_bytes) {
  const int64_t budget = descriptor_budget();
  // Some more than needed at a time: each call looks at all files.
  if (Descriptor::count() >= budget) drop_idle_descriptors(budget * 3 / 4);
  std::shared_ptr<MappedFile> mapping;
  try {
    mapping = std::make_shared<MappedFile>(path, required_bytes);
  } catch (const TooManyOpenFiles&) {
    drop_idle_descriptors(0);
    mapping = std::make_shared<MappedFile>(path, required_bytes);
  }
  if (Descriptor::count() > budget) mapping->drop_descriptor();
  return mapping;
}

std::shared_ptr<MappedFile> FileTable::insert(int64_t file, std::shared_ptr<MappedFile> mapping) {
  std::shared_ptr<MappedFile> evicted;  // declared first: unmapped after the lock is gone
  const std::lock_guard lock(registry().mutex);
  File& entry = files_[file];
  if (entry.mapping) return entry.mapping;  // another thread was faster

  // A new file has another time too, unless it is a copy that keeps the time. The inode proves
  // nothing: some network file systems number inodes anew.
  const MappedFile::Identity now = mapping->identity();
  if (entry.modified_ns != 0 && now.modified_ns != entry.modified_ns) {
    throw StoreError(ErrorKind::Changed,
                     entry.path + ": was written or replaced after it was first opened");
  }
  entry.modified_ns = now.modified_ns;
  mapping->advise(access_);
  recent_.push_front(file);
  entry.recency = recent_.begin();
  entry.mapping = mapping;
  if (static_cast<int64_t>(recent_.size()) > max_open_) {
    evicted = std::move(files_[recent_.back()].mapping);
    recent_.pop_back();
  }
  return mapping;
}

void FileTable::drop_idle_descriptors(int64_t keep) {
  std::vector<std::unique_ptr<Descriptor>> dropped;  // closed after the lock is gone
  const std::lock_guard lock(registry().mutex);
  int64_t excess = Descriptor::count() - keep;
  for (FileTable* table : registry().tables) {
    for (auto at = table->recent_.rbegin(); at != table->recent_.rend() && excess > 0; ++at) {
      MappedFile& file = *table->files_[*at].mapping;
      if (table->files_[*at].mapping.use_count() > 1 || !file.has_descriptor()) continue;
      std::atomic_thread_fence(std::memory_order_acquire);  // after its last use by others
      dropped.push_back(file.drop_descriptor());
      --excess;
    }
  }
}

void FileTable::advise(Access access) {
  const std::lock_guard lock(registry().mutex);
  access_ = access;
  for (int64_t file : recent_) files_[file].mapping->advise(access);
}

}  // namespace shazam
