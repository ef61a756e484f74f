#include "training/projection.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "store/convert.h"
#include "student/patch_tasks.h"

namespace shazam {
namespace {

constexpr int64_t kPieceRows = 256;  // at most, of which a tile fits a quarter of a cache
constexpr int64_t kLeastRows = 24;   // of a piece, fewer are not worth a thread

/// Rows [first, first + rows) of the tokens of one teacher, whose columns begin at `column`.
class Piece {
 public:
  Piece(const Projection& task, const RowKernels& kernels, int64_t teacher, int64_t first,
        int64_t rows)
      : task_(task),
        kernels_(kernels),
        teacher_(teacher),
        column_(std::accumulate(task.dims.begin(), task.dims.begin() + teacher, int64_t{0})),
        first_(first),
        rows_(rows) {}

  void run(const float* inverse) const {
    thread_local std::vector<float> tile;
    tile.resize(std::max<size_t>(tile.size(), rows_ * kTileStride));
    const int64_t N = static_cast<int64_t>(task_.dims.size()), D = task_.D;
    for (int64_t k = 0; k < task_.dims[teacher_]; k += kTileDepth) {
      const int64_t depth = std::min(kTileDepth, task_.dims[teacher_] - k);
      for (int64_t row = 0; row < rows_; ++row) {
        load(first_ + row, column_ + k, depth, inverse, tile.data() + row * kTileStride);
      }
      kernels_.multiply_tile({tile.data(), 0, task_.weight + (column_ + k) * D, kernels_.panel, D,
                              k == 0 ? task_.bias + teacher_ * D : nullptr,
                              task_.tokens + (first_ * N + teacher_) * D, N * D, rows_, D, depth});
    }
  }

 private:
  /// Columns [column, column + depth) of a row, standardised.
  void load(int64_t row, int64_t column, int64_t depth, const float* inverse, float* to) const {
    const auto N = static_cast<int64_t>(task_.dims.size());
    if (task_.present != nullptr && !task_.present[row * N + teacher_]) {
      std::fill_n(to, depth, 0.0f);
    } else {
      const Matrix& table = task_.features;
      const int64_t source = task_.rows == nullptr ? row : task_.rows[row];
      widen(table.dtype, table.row(source) + column * item_size(table.dtype), to, depth);
      kernels_.standardise(to, task_.mean + column, inverse + column, depth);
    }
    if (task_.columns == nullptr) return;
    const int64_t width = task_.features.columns;
    std::memcpy(task_.columns + row * width + column, to, depth * sizeof(float));
  }

  const Projection& task_;
  const RowKernels& kernels_;
  int64_t teacher_, column_, first_, rows_;
};

/// Rows of a piece: several pieces for every thread, as teachers differ in their columns.
int64_t piece_rows(const Projection& task, int threads) {
  const auto N = static_cast<int64_t>(task.dims.size());
  const int64_t each = threads == 1 ? 1 : (4 * threads + N - 1) / N;  // pieces of a teacher
  const int64_t most = std::clamp((task.B + each - 1) / each, kLeastRows, kPieceRows);
  const int64_t pieces = (task.B + most - 1) / most;
  return ((task.B + pieces - 1) / pieces + 3) / 4 * 4;
}

}  // namespace

void project(const Projection& task, int threads, const RowKernels& kernels) {
  if (task.B == 0) return;
  std::vector<float> inverse(task.features.columns);
  for (size_t k = 0; k < inverse.size(); ++k) inverse[k] = 1.0f / task.scale[k];
  const int64_t rows = piece_rows(task, threads), pieces = (task.B + rows - 1) / rows;
  run_tasks(static_cast<int64_t>(task.dims.size()) * pieces, threads, [&](int64_t index) {
    const int64_t first = index % pieces * rows;
    Piece(task, kernels, index / pieces, first, std::min(rows, task.B - first)).run(inverse.data());
  });
}

}  // namespace shazam
