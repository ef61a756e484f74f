#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "store/mapped_file.h"

namespace shazam {

/// The manifest that lists the files, as it was when it was read. Files that are opened after it was
/// written anew belong to another listing.
struct Manifest {
  std::string path;
  int64_t modified_ns;
  uint64_t inode;

  /// Throws Changed when it was written anew. One that is gone or moved proves nothing.
  void require_unchanged() const;
};

/// The files of one store: opened on first use, the least recently used ones closed again.
///
/// The table keeps at most `max_open` files mapped. A file also stays mapped while somebody holds
/// the pointer that `open` returned, so closing a file never unmaps memory that is being read. All
/// tables of the process together keep a quarter of the descriptors that the process may have;
/// files beyond that stay mapped without one. Every method may be called from any thread.
class FileTable {
 public:
  /// `modified` is when each file was last written, in nanoseconds, as of when its layout was read; 0 or
  /// no numbers at all: not known.
  FileTable(std::vector<std::string> paths, int max_open, std::optional<Manifest> manifest,
            const std::vector<int64_t>& modified);
  ~FileTable();
  FileTable(const FileTable&) = delete;
  FileTable& operator=(const FileTable&) = delete;

  int64_t size() const { return static_cast<int64_t>(files_.size()); }
  int max_open() const { return max_open_; }

  /// Declares that the first `bytes` bytes of a file will be read. Call before the first `open`.
  void require(int64_t file, int64_t bytes);

  /// The mapped file. A new mapping is checked to hold what `require` declared; after reading,
  /// `MappedFile::require_unchanged` checks that the file has not changed since. Throws Missing,
  /// Truncated, Changed (the file was written, or another one has taken its path, since its layout was
  /// read or the first `open`, or a manifest was written anew), Unsupported or System.
  std::shared_ptr<const MappedFile> open(int64_t file);

  /// How the files will be read: those that are open now, and those opened later.
  void advise(Access access);

 private:
  struct File {
    std::string path;
    int64_t required_bytes = 0;
    int64_t modified_ns = 0;  // when its layout was read, or at the first `open`; 0 before
    std::shared_ptr<MappedFile> mapping;
    std::list<int64_t>::iterator recency;  // valid while mapping is set
  };

  std::shared_ptr<MappedFile> find(int64_t file);
  static std::shared_ptr<MappedFile> map(const std::string& path, int64_t required_bytes);
  std::shared_ptr<MappedFile> insert(int64_t file, std::shared_ptr<MappedFile> mapping);
  static void drop_idle_descriptors(int64_t keep);

  std::vector<File> files_;
  std::optional<Manifest> manifest_;
  std::list<int64_t> recent_;  // the mapped files, most recently used first
  int max_open_;
  Access access_ = Access::Normal;
};

}  // namespace shazam
