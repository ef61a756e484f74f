#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "store/mapped_file.h"

namespace shazam {

/// The files of one store: opened on first use, the least recently used ones closed again.
///
/// The table keeps at most `max_open` files mapped. Whoever holds the pointer that `open` returned
/// keeps that file mapped too, so eviction never pulls memory from under a reader. All tables of the
/// process together keep a quarter of the descriptors that the process may have; files beyond that
/// stay mapped without one.
/// Every method may be called from any thread.
class FileTable {
 public:
  FileTable(std::vector<std::string> paths, int max_open);
  ~FileTable();
  FileTable(const FileTable&) = delete;
  FileTable& operator=(const FileTable&) = delete;

  int64_t size() const { return static_cast<int64_t>(files_.size()); }
  int max_open() const { return max_open_; }

  /// Declares that the first `bytes` bytes of a file will be read. Call before the first `open`.
  void require(int64_t file, int64_t bytes);

  struct Opened {
    std::shared_ptr<const MappedFile> file;
    int64_t required_bytes;
    int64_t modified_ns;  // when the file was last written

    /// Throws Shrunk or Changed unless the file is as it was.
    void require_unchanged() const { file->require_unchanged(required_bytes, modified_ns); }
  };

  /// The mapped file, checked at this moment to hold what `require` declared. Throws Missing,
  /// Truncated, Shrunk, Changed (another file has taken its path since the first `open`),
  /// Unsupported or System.
  Opened open(int64_t file);

  /// How the files will be read: those that are open now, and those opened later.
  void advise(Access access);

 private:
  struct File {
    std::string path;
    int64_t required_bytes = 0;
    MappedFile::Identity identity;
    bool seen = false;
    std::shared_ptr<MappedFile> mapping;
    std::list<int64_t>::iterator recency;  // valid while mapping is set
  };

  std::shared_ptr<MappedFile> find(int64_t file, bool& seen);
  static std::shared_ptr<MappedFile> map(const std::string& path);
  std::shared_ptr<MappedFile> insert(int64_t file, std::shared_ptr<MappedFile> mapping);
  static void drop_idle_descriptors(int64_t keep);

  std::vector<File> files_;
  std::list<int64_t> recent_;  // the mapped files, most recently used first
  int max_open_;
  Access access_ = Access::Normal;
};

}  // namespace shazam
