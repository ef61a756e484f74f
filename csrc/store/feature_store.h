#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "store/dtype.h"
#include "store/file_table.h"

namespace shazam {

/// `rows` rows that lie in one file, `stride` bytes from the start of one to the start of the next.
struct Extent {
  int64_t file;
  int64_t offset;
  int64_t rows;
  int64_t stride;
};

/// A matrix in the caller's memory. The values of a row are contiguous; the rows need not be.
struct Matrix {
  std::byte* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;  // bytes, may be negative
  DType dtype;

  std::byte* row(int64_t index) const { return data + index * stride; }
};

/// One logical matrix [rows, columns] of one dtype, made of extents of files, one after another.
///
/// The constructor checks all that can be checked without opening a file, and opens none. Files
/// are opened when a row of theirs is first asked for; see FileTable for how many stay open.
/// The const methods may be called from any thread. The contents of an output are unspecified after
/// an error. A file that shrinks or is written while it is read is an error: Shrunk or Changed.
class FeatureStore {
 public:
  FeatureStore(int64_t columns, DType dtype, std::vector<std::string> files,
               std::vector<Extent> extents, int max_open = 512,
               std::optional<Manifest> manifest = std::nullopt,
               const std::vector<int64_t>& modified = {});

  int64_t rows() const { return first_row_.back(); }
  int64_t columns() const { return columns_; }
  DType dtype() const { return dtype_; }

  /// Copies rows[i] to out's row i, widened if `out` is float32. Otherwise `out` has our dtype.
  void gather(const int64_t* rows, int64_t count, const Matrix& out, int threads) const;

  /// The same, but where half of the rows or more lie in long runs that the page cache lacks, these
  /// are read from the disk past it: at a tenth of the processor's time, and other files stay in it.
  /// Returns false, with nothing copied, where all rows seem to be in the page cache.
  bool gather_past_cache(const int64_t* rows, int64_t count, const Matrix& out, int threads) const;

  /// As `gather` for the rows [start, stop).
  void read(int64_t start, int64_t stop, const Matrix& out, int threads) const;

  /// The first row in [start, stop) that holds a NaN or an infinity, or -1.
  int64_t check_finite(int64_t start, int64_t stop) const;

  /// Starts reading these rows into the page cache unless they are there, and returns at once.
  void will_need(const int64_t* rows, int64_t count) const;

  /// The same where `gather_past_cache` takes them from there.
  void will_need_past_cache(const int64_t* rows, int64_t count) const;

  /// Reads these rows into the page cache unless they are there. Returns when all runs of 1 MiB and
  /// more are there; reading the others has started.
  void read_ahead(const int64_t* rows, int64_t count) const;

  /// How the files will be read from now on.
  void advise(Access access) { files_.advise(access); }

 private:
  friend class Window;

  void validate(int64_t index, const Extent& extent) const;
  void check_output(const Matrix& out, int64_t rows) const;
  void check_range(int64_t start, int64_t stop) const;

  int64_t columns_;
  DType dtype_;
  int64_t row_bytes_;
  std::vector<Extent> extents_;
  std::vector<int64_t> first_row_;  // of every extent, and behind them the number of rows
  mutable FileTable files_;
};

}  // namespace shazam
