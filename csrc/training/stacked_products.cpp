#include "training/stacked_products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "student/patch_tasks.h"

namespace shazam {
namespace {

constexpr int64_t kPieceRows = 256;  // at most, of which a tile fits a quarter of a cache
constexpr int64_t kLeastRows = 24;   // of a piece, fewer are not worth a thread
constexpr int64_t kSide = 4;         // of the squares that are transposed in registers
using Four = float __attribute__((vector_size(16)));
using Order = int32_t __attribute__((vector_size(16)));

/// Copies [rows, depth] into a tile.
void copy_tile(const float* x, int64_t rows, int64_t depth, int64_t stride, float* tile) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(tile + row * kTileStride, x + row * stride, depth * sizeof(float));
  }
}

Four load_four(const float* from) {
  Four values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

/// to[k, c] = from[c, k] of a square of kSide.
void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  const Four a = load_four(from), b = load_four(from + from_stride);
  const Four c = load_four(from + 2 * from_stride), d = load_four(from + 3 * from_stride);
  const Four low_ab = __builtin_shuffle(a, b, Order{0, 4, 1, 5});
  const Four high_ab = __builtin_shuffle(a, b, Order{2, 6, 3, 7});
  const Four low_cd = __builtin_shuffle(c, d, Order{0, 4, 1, 5});
  const Four high_cd = __builtin_shuffle(c, d, Order{2, 6, 3, 7});
  const Four columns[kSide] = {__builtin_shuffle(low_ab, low_cd, Order{0, 1, 4, 5}),
                               __builtin_shuffle(low_ab, low_cd, Order{2, 3, 6, 7}),
                               __builtin_shuffle(high_ab, high_cd, Order{0, 1, 4, 5}),
                               __builtin_shuffle(high_ab, high_cd, Order{2, 3, 6, 7})};
  for (int k = 0; k < kSide; ++k) std::memcpy(to + k * to_stride, &columns[k], sizeof(Four));
}

/// Copies the transpose of [columns, depth] into a panel [depth, panel].
void copy_panel(const float* from, int64_t columns, int64_t depth, int64_t stride, int64_t panel,
                float* to) {
  const int64_t whole = columns / kSide * kSide, deep = depth / kSide * kSide;
  for (int64_t k = 0; k < deep; k += kSide) {
    for (int64_t c = 0; c < whole; c += kSide) {
      transpose_square(from + c * stride + k, stride, to + k * panel + c, panel);
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t k = c < whole ? deep : 0; k < depth; ++k) to[k * panel + c] = from[c * stride + k];
  }
}

/// Values of this thread's, kept for its next piece.
struct Scratch {
  std::vector<float> tile, panel, zeros;

  static float* of(std::vector<float>& values, int64_t count) {
    values.resize(std::max<size_t>(values.size(), count));
    return values.data();
  }
};

/// Some rows of one matrix of the result.
class Piece {
 public:
  Piece(const StackedProduct& task, const RowKernels& kernels, int64_t index, int64_t first,
        int64_t rows)
      : task_(task),
        kernels_(kernels),
        left_(task.left[index] + first * (task.left_transposed ? 1 : task.left.stride)),
        right_(task.right[index]),
        bias_(task.bias == nullptr ? nullptr : task.bias + index * task.columns),
        out_(task.out[index] + first * task.out.stride),
        rows_(rows) {}

  void run() const {
    thread_local Scratch scratch;
    for (int64_t k = 0; k < task_.depth; k += kTileDepth) multiply(k, scratch);
  }

 private:
  /// What the depth from k on contributes.
  void multiply(int64_t k, Scratch& scratch) const {
    const int64_t depth = std::min(kTileDepth, task_.depth - k);
    const float* left = left_ + k * (task_.left_transposed ? task_.left.stride : 1);
    if (!task_.left_transposed) {
      float* const tile = Scratch::of(scratch.tile, rows_ * kTileStride);
      copy_tile(left, rows_, depth, task_.left.stride, tile);
      left = tile;
    }
    const float* begin = bias_;
    if (bias_ == nullptr) begin = Scratch::of(scratch.zeros, task_.columns);
    const int64_t stride = task_.right.stride;
    TileProduct block{left, task_.left.stride, right_ + k * stride, kernels_.panel, stride,
                      k == 0 ? begin : nullptr, out_, task_.out.stride, rows_, task_.columns, depth};
    if (!task_.right_transposed) return multiply(block);
    block.weights = Scratch::of(scratch.panel, kTileDepth * kernels_.panel);
    block.weight_step = kernels_.panel;
    for (int64_t c = 0; c < task_.columns; c += kernels_.panel) {
      block.columns = std::min(kernels_.panel, task_.columns - c);
      block.out = out_ + c;
      if (k == 0) block.bias = begin + c;
      copy_panel(right_ + c * stride + k, block.columns, depth, stride, kernels_.panel,
                 scratch.panel.data());
      multiply(block);
    }
  }

  void multiply(const TileProduct& block) const {
    (task_.left_transposed ? kernels_.multiply_columns : kernels_.multiply_tile)(block);
  }

  const StackedProduct& task_;
  const RowKernels& kernels_;
  const float* left_;
  const float* right_;
  const float* bias_;
  float* out_;
  int64_t rows_;
};

/// Rows of a piece: of about the same number in all, a multiple of 4, the fewest that kernels take.
int64_t piece_rows(const StackedProduct& task, int threads) {
  const int64_t each = (threads + task.S - 1) / task.S;  // pieces of a matrix, for every thread one
  const int64_t most = std::max(kLeastRows, (task.rows + each - 1) / each);
  const int64_t pieces = (task.rows + std::min(most, kPieceRows) - 1) / std::min(most, kPieceRows);
  return ((task.rows + pieces - 1) / pieces + 3) / 4 * 4;
}

}  // namespace

void stacked_product(const StackedProduct& task, int threads, const RowKernels& kernels) {
  const int64_t rows = piece_rows(task, threads), pieces = (task.rows + rows - 1) / rows;
  run_tasks(task.S * pieces, threads, [&](int64_t index) {
    const int64_t first = index % pieces * rows;
    Piece(task, kernels, index / pieces, first, std::min(rows, task.rows - first)).run();
  });
}

}  // namespace shazam
