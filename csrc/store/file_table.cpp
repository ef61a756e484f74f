#include "store/file_table.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

namespace shazam {
namespace {

/// All tables of the process under one lock. One, because a process that runs out of descriptors
/// has to close idle files of every table, and because a forked child can only be given a lock
/// whose state is known. It is never held while a file is opened or closed.
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

}  // namespace

FileTable::FileTable(std::vector<std::string> paths, int max_open) : max_open_(max_open) {
  if (max_open < 1) throw StoreError(ErrorKind::Bounds, "max_open must be at least 1");
  files_.resize(paths.size());
  for (size_t i = 0; i < paths.size(); ++i) files_[i].path = std::move(paths[i]);
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
  if (auto mapping = find(file)) {
    mapping->require(files_[file].required_bytes);
    return mapping;
  }
  auto mapping = map(files_[file].path);
  mapping->require(files_[file].required_bytes);
  return insert(file, std::move(mapping));
}

std::shared_ptr<const MappedFile> FileTable::find(int64_t file) {
  const std::lock_guard lock(registry().mutex);
  File& entry = files_[file];
  if (entry.mapping) recent_.splice(recent_.begin(), recent_, entry.recency);
  return entry.mapping;
}

std::shared_ptr<const MappedFile> FileTable::map(const std::string& path) {
  try {
    return std::make_shared<MappedFile>(path);
  } catch (const TooManyOpenFiles&) {
    close_idle_files();
    return std::make_shared<MappedFile>(path);
  }
}

std::shared_ptr<const MappedFile> FileTable::insert(int64_t file,
                                                    std::shared_ptr<const MappedFile> mapping) {
  std::shared_ptr<const MappedFile> evicted;  // declared first: unmapped after the lock is gone
  const std::lock_guard lock(registry().mutex);
  File& entry = files_[file];
  if (entry.mapping) return entry.mapping;  // another thread was faster

  // A copy or a re-creation has another inode and another time. Either alone proves nothing:
  // `touch` changes the time, and some network file systems number inodes anew.
  const MappedFile::Identity now = mapping->identity();
  if (entry.seen && now.inode != entry.identity.inode &&
      now.modified_ns != entry.identity.modified_ns) {
    throw StoreError(ErrorKind::Changed, entry.path + ": was replaced by another file");
  }
  entry.seen = true;
  entry.identity = now;
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

void FileTable::close_idle_files() {
  std::vector<std::shared_ptr<const MappedFile>> idle;  // unmapped after the lock is gone
  const std::lock_guard lock(registry().mutex);
  for (FileTable* table : registry().tables) {
    table->recent_.remove_if([&](int64_t file) {
      auto& mapping = table->files_[file].mapping;
      if (mapping.use_count() > 1) return false;
      idle.push_back(std::move(mapping));
      return true;
    });
  }
}

void FileTable::advise(Access access) {
  const std::lock_guard lock(registry().mutex);
  access_ = access;
  for (int64_t file : recent_) files_[file].mapping->advise(access);
}

}  // namespace shazam
