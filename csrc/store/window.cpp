#include "store/window.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include "store/convert.h"
#include "store/fault_guard.h"
#include "store/thread_pool.h"

namespace shazam {
namespace {

constexpr int64_t kWindowBytes = 32 << 20;
constexpr int64_t kPieceBytes = 64 << 10;    // the grain of the threads' work
constexpr int64_t kThreadBytes = 512 << 10;  // to wake a thread costs as much as copying 300 KB
// So many bytes in a row that are in the page cache are mapped at once: what that costs is a plain read's
// time where the page cache holds single pages, and a third of it where it holds large folios.
constexpr int64_t kMappedBytes = 32 << 10;
constexpr int64_t kPrefetchPieces = 4;       // how far ahead of the copy the CPU is told of a row
constexpr int64_t kPrefetchBytes = 1 << 10;  // how much of its start; the hardware sees the rest
// The kernel reads ahead of a long run better by itself, but far beyond its end: for nothing where
// the file's next run lies elsewhere.
constexpr ptrdiff_t kLongBytes = 1 << 20;
constexpr ptrdiff_t kDirectLeast = 256 << 10;  // of a run that is worth passing by the page cache
constexpr ptrdiff_t kGapBytes = 16 << 10;      // reading through a gap this small beats two reads

/// Owns nothing where it touches the mapping: see `run_guarded`.
void copy(const Piece& piece, DType dtype, int64_t columns, const Matrix& out, bool cold) {
  const bool dense = piece.stride == columns * item_size(dtype) &&
                     out.stride == columns * item_size(out.dtype);
  const int64_t runs = dense ? 1 : piece.rows;
  const int64_t values = dense ? columns * piece.rows : columns;
  const int64_t bytes = values * item_size(dtype);
  for (int64_t i = 0; i < runs; ++i) {
    std::byte* target = out.row(piece.position + i);
    const std::byte* source = piece.row(i);
    const bool visited = piece.file->visit(source, source + bytes);
    const bool known = visited || (!cold && bytes >= kMappedBytes);
    if (out.dtype == dtype) {
      known ? static_cast<void>(std::memcpy(target, source, bytes))
            : piece.file->read(source, bytes, target);
      continue;
    }
    if (!known) {
      thread_local std::vector<std::byte> scratch;
      scratch.resize(std::max<size_t>(scratch.size(), bytes));
      piece.file->read(source, bytes, scratch.data());
      source = scratch.data();
    }
    widen(dtype, source, target, values);
  }
}

/// The rows of a piece that lie at `source` in our own memory.
void copy_from(const std::byte* source, const Piece& piece, DType dtype, int64_t columns,
               const Matrix& out) {
  for (int64_t i = 0; i < piece.rows; ++i, source += piece.stride) {
    std::byte* const target = out.row(piece.position + i);
    if (out.dtype == dtype) {
      std::memcpy(target, source, columns * item_size(dtype));
    } else {
      widen(dtype, source, target, columns);
    }
  }
}

/// Rows at random addresses miss every cache, and that of the page table too. To ask for them early
/// saves 8 % of the time at 10 KB a row and half of it at 1 KB.
void prefetch(const Piece& piece, int64_t row_bytes) {
  for (int64_t at = 0; at < std::min(row_bytes, kPrefetchBytes); at += 64) {
    __builtin_prefetch(piece.source + at);
  }
}

}  // namespace

int64_t Window::add(int64_t row, int64_t count, int64_t position) {
  if (bytes_ >= kWindowBytes) return 0;
  const int64_t index = find_extent(row, position);
  const Extent& extent = store_.extents_[index];
  const int64_t row_in_extent = row - store_.first_row_[index];
  const int64_t rows_per_piece = std::max<int64_t>(1, kPieceBytes / store_.row_bytes_);
  count = std::min({count, extent.rows - row_in_extent, rows_per_piece});

  if (index == last_extent_ && row == next_row_ && pieces_.back().rows < rows_per_piece &&
      position == pieces_.back().position + pieces_.back().rows) {
    count = std::min(count, rows_per_piece - pieces_.back().rows);
    pieces_.back().rows += count;
  } else {
    const MappedFile* file = open(extent.file);
    if (file == nullptr) return 0;
    const std::byte* source = file->data() + extent.offset + row_in_extent * extent.stride;
    pieces_.push_back({file, source, extent.stride, count, position});
  }
  bytes_ += count * store_.row_bytes_;
  last_extent_ = index;
  next_row_ = row + count;
  return count;
}

int64_t Window::find_extent(int64_t row, int64_t position) const {
  const auto& first_row = store_.first_row_;
  if (row < 0 || row >= store_.rows()) {
    throw StoreError(ErrorKind::Bounds, "row " + std::to_string(row) + " at position " +
                                            std::to_string(position) + " is outside [0, " +
                                            std::to_string(store_.rows()) + ")");
  }
  if (row >= first_row[last_extent_] && row < first_row[last_extent_ + 1]) return last_extent_;
  return std::upper_bound(first_row.begin(), first_row.end(), row) - first_row.begin() - 1;
}

/// Null when the window has as many files as it may have, or as the process may have.
const MappedFile* Window::open(int64_t file) {
  const auto found = files_.find(file);
  if (found != files_.end()) return found->second.get();
  if (static_cast<int64_t>(files_.size()) == store_.files_.max_open()) return nullptr;
  try {
    return files_.emplace(file, store_.files_.open(file)).first->second.get();
  } catch (const TooManyOpenFiles&) {
    if (files_.empty()) throw;
    return nullptr;
  }
}

/// Checks at most 16 places, since one check costs as much as copying half a row. A request with
/// one page outside the page cache mostly has more of them.
bool Window::looks_cold() const {
  const size_t count = pieces_.size();
  const size_t step = std::max(std::clamp<size_t>(count / 4, 1, 8), (count + 15) / 16);
  for (size_t i = 0; i < count; i += step) {
    if (!pieces_[i].file->is_cached(pieces_[i].source)) return true;
  }
  return false;
}

std::vector<Piece> Window::in_file_order() const {
  std::vector<Piece> sorted = pieces_;
  std::sort(sorted.begin(), sorted.end(), [](const Piece& a, const Piece& b) {
    return std::less<>()(a.source, b.source);
  });
  return sorted;
}

std::vector<Window::Run> Window::runs(const std::vector<Piece>& sorted) const {
  std::vector<Run> runs;
  for (const Piece& piece : sorted) {
    const std::byte* const end = end_of(piece);
    if (!runs.empty() && runs.back().first->file == piece.file &&
        piece.source - runs.back().end <= kGapBytes) {
      runs.back().last = &piece + 1;
      runs.back().end = std::max(runs.back().end, end);
    } else {
      runs.push_back({&piece, &piece + 1, end, false});
    }
  }
  return runs;
}

bool Window::read_ahead(bool load_long_runs) const {
  std::optional<bool> cold;  // asked only where it matters: to ask disturbs the kernel's reading ahead
  if (!load_long_runs && !*(cold = looks_cold())) return false;
  const std::vector<Piece> sorted = in_file_order();
  const std::vector<Run> all = runs(sorted);
  for (size_t i = 0; i < all.size(); ++i) {
    const MappedFile* const file = all[i].first->file;
    const std::byte* const begin = all[i].first->source;
    const bool is_only = (i == 0 || all[i - 1].first->file != file) &&
                         (i + 1 == all.size() || all[i + 1].first->file != file);
    if (all[i].bytes() >= kLongBytes && (load_long_runs || is_only)) {
      if (load_long_runs) file->load(begin, all[i].end);
      continue;
    }
    if (!cold) cold = looks_cold();
    if (*cold) file->will_need(begin, all[i].end);
  }
  return cold.value_or(false);
}

const std::byte* Window::end_of(const Piece& piece) const {
  return piece.row(piece.rows - 1) + store_.row_bytes_;
}

/// Runs of at most kDirectBytes. What is too short to be worth it, or a single piece that is longer,
/// is not to be read past the page cache.
std::vector<Window::Run> Window::direct_reads(const std::vector<Run>& runs) const {
  std::vector<Run> reads;
  for (const Run& run : runs) {
    const bool is_long = run.bytes() >= kDirectLeast;
    for (const Piece* piece = run.first; piece != run.last; ++piece) {
      const std::byte* const end = end_of(*piece);
      if (piece != run.first && end - reads.back().first->source <= MappedFile::kDirectBytes) {
        reads.back().last = piece + 1;
        reads.back().end = std::max(reads.back().end, end);
      } else {
        const bool fits = end - piece->source <= MappedFile::kDirectBytes;
        reads.push_back({piece, piece + 1, end, is_long && fits});
      }
    }
  }
  return reads;
}

void Window::copy_past_cache(const Matrix& out, int threads) const {
  install_fault_handler();
  const std::vector<Piece> sorted = in_file_order();
  const std::vector<Run> reads = direct_reads(runs(sorted));
  for (const Run& run : reads) {
    if (!run.direct) run.first->file->will_need(run.first->source, run.end);
  }
  parallel_for(reads.size(), threads, [&](int64_t i) { copy_directly(reads[i], out); });
  require_unchanged();
}

bool Window::has_long_runs() const {
  int64_t bytes = 0;
  const std::vector<Piece> sorted = in_file_order();
  for (const Run& run : direct_reads(runs(sorted))) bytes += run.direct ? run.bytes() : 0;
  return 2 * bytes >= bytes_;
}

void Window::copy_directly(const Run& run, const Matrix& out) const {
  const std::byte* const begin = run.first->source;
  const std::byte* const memory =
      run.direct ? run.first->file->read_past_cache(begin, run.end) : nullptr;
  for (const Piece* piece = run.first; piece != run.last; ++piece) {
    if (memory != nullptr) {
      copy_from(memory + (piece->source - begin), *piece, store_.dtype_, store_.columns_, out);
    } else {
      read_guarded([&] { copy(*piece, store_.dtype_, store_.columns_, out, true); });
    }
  }
}

void Window::copy_to(const Matrix& out, int threads, bool cold) const {
  const int64_t count = static_cast<int64_t>(pieces_.size());
  const int64_t blocks = std::clamp<int64_t>(bytes_ / kPieceBytes, 1, std::max<int64_t>(count, 1));
  install_fault_handler();
  parallel_for(blocks, std::min<int64_t>(threads, bytes_ / kThreadBytes), [&](int64_t block) {
    const int64_t first = block * count / blocks, last = (block + 1) * count / blocks;
    read_guarded([&] { copy_pieces(first, last, out, cold); });
  });
  require_unchanged();
}

void Window::copy_pieces(int64_t first, int64_t last, const Matrix& out, bool cold) const {
  for (int64_t i = first; i < last; ++i) {
    if (i + kPrefetchPieces < last) prefetch(pieces_[i + kPrefetchPieces], store_.row_bytes_);
    copy(pieces_[i], store_.dtype_, store_.columns_, out, cold);
  }
}

int64_t Window::find_nonfinite() const {
  int64_t found = -1;
  install_fault_handler();
  read_guarded([&] {
    for (const Piece& piece : pieces_) {
      for (int64_t i = 0; i < piece.rows; ++i) {
        if (all_finite(store_.dtype_, piece.row(i), store_.columns_)) continue;
        found = piece.position + i;
        return;
      }
    }
  });
  require_unchanged();
  return found;
}

/// Runs work(), which reads the pieces, and throws when a page of theirs cannot be had.
template <typename Work>
void Window::read_guarded(const Work& work) const {
  const void* const address = run_guarded(work);
  if (address == nullptr) return;
  for (const auto& [index, file] : files_) {
    if (!file->contains(address)) continue;
    const std::string& path = file->path();
    try {
      file->require_unchanged();
    } catch (const StoreError&) {
      throw StoreError(ErrorKind::Shrunk, path + ": shrank while it was read");
    }
    throw StoreError(ErrorKind::System,
                     path + ": cannot be read from the disk at byte " +
                         std::to_string(static_cast<const std::byte*>(address) - file->data()));
  }
  throw_output_lost();
}

/// The rest of the last page of a file that has shrunk reads as zeros, without a signal, and a file
/// that is written reads as a mixture.
void Window::require_unchanged() const {
  for (const auto& [index, file] : files_) file->require_unchanged();
}

}  // namespace shazam
