#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "store/feature_store.h"

namespace shazam {

/// Equally spaced rows of a store, found in mapped memory.
struct Piece {
  const MappedFile* file;
  const std::byte* source;
  int64_t stride;
  int64_t rows;
  int64_t position;  // of the first row in the output

  const std::byte* row(int64_t index) const { return source + index * stride; }
};

/// The part of a request that is worked on at one time. Bounded in bytes, so that what was read
/// ahead is still in memory when it is copied, and in files, so that a request over any number of
/// them stays within the store's limit. Its files stay mapped while it lives.
class Window {
 public:
  explicit Window(const FeatureStore& store) : store_(store) {}

  /// Takes rows from the front of [row, row + count), which go to `position` of the output and
  /// behind it. Returns how many, 0 when the window is full. Throws Bounds and what FileTable::open
  /// throws.
  int64_t add(int64_t row, int64_t count, int64_t position);

  /// Starts reading the rows into the page cache unless they are there. A long run that is the only
  /// one of its file is left to the kernel; if `load_long_runs`, all long ones are there when this
  /// returns. Returns whether rows seemed to be missing and may still be.
  bool read_ahead(bool load_long_runs = false) const;

  int64_t rows() const { return bytes_ / store_.row_bytes_; }

  /// Whether half of the bytes or more lie in runs that can be read past the page cache.
  bool has_long_runs() const;

  /// `cold`: rows may be missing in the page cache; the kernel reads ahead better of plain reads. Throws
  /// Shrunk or Changed when a file did not stay as it was.
  void copy_to(const Matrix& out, int threads, bool cold) const;

  /// The same, with long runs read from the disk past the page cache.
  void copy_past_cache(const Matrix& out, int threads) const;

  /// Whether rows seem to be missing in the page cache.
  bool looks_cold() const;

  /// The position of the first row that holds a NaN or an infinity, or -1. Throws as `copy_to`.
  int64_t find_nonfinite() const;

 private:
  /// Pieces that lie close together in a file; they end before `end`.
  struct Run {
    const Piece* first;
    const Piece* last;
    const std::byte* end;
    bool direct = false;  // to be read past the page cache

    ptrdiff_t bytes() const { return end - first->source; }
  };

  int64_t find_extent(int64_t row, int64_t position) const;
  const MappedFile* open(int64_t file);
  std::vector<Piece> in_file_order() const;
  std::vector<Run> runs(const std::vector<Piece>& sorted) const;
  std::vector<Run> direct_reads(const std::vector<Run>& runs) const;
  const std::byte* end_of(const Piece& piece) const;
  void copy_pieces(int64_t first, int64_t last, const Matrix& out, bool cold) const;
  void copy_directly(const Run& run, const Matrix& out) const;
  template <typename Work>
  void read_guarded(const Work& work) const;
  void require_unchanged() const;

  const FeatureStore& store_;
  std::unordered_map<int64_t, std::shared_ptr<const MappedFile>> files_;
  std::vector<Piece> pieces_;
  int64_t bytes_ = 0;
  int64_t last_extent_ = 0;  // what the last piece was taken from
  int64_t next_row_ = -1;    // what would continue the last piece
};

}  // namespace shazam
