#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shazam {

/// What tells a file from one that was changed or replaced: bytes, when its content and its inode
/// last changed in nanoseconds, inode. -1 where the file cannot be looked at, or a number is too large.
struct FileState {
  int64_t size, modified, changed, inode;
};

/// The states of files, looked at by several threads, as many wait for a network.
void file_states(const std::vector<std::string>& paths, FileState* states);

}  // namespace shazam
