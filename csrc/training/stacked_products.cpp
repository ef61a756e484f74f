#include "training/stacked_products.h"

#include <algorithm>
#include <vector>

#include "student/patch_tasks.h"
#include "training/panels.h"

namespace shazam {
namespace {

constexpr int64_t kPieceRows = 256;  // at most, of which a tile fits a quarter of a cache
constexpr int64_t kLeastRows = 24;   // of a piece, fewer are not worth a thread

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

/// Pieces of each of so many matrices: as many for every thread, or so many that it hardly matters.
int64_t pieces_of_matrix(int64_t matrices, int threads) {
  int64_t each = 1;
  while (matrices * each % threads != 0 && matrices * each < 4 * threads) ++each;
  return each;
}

/// How one product is cut.
struct Cut {
  const StackedProduct& task;
  int64_t rows;    // of a piece, a multiple of 4, the fewest that kernels take
  int64_t pieces;  // of a matrix

  Cut(const StackedProduct& product, int64_t each) : task(product) {
    const int64_t most = std::max(kLeastRows, (task.rows + each - 1) / each);
    pieces = (task.rows + std::min(most, kPieceRows) - 1) / std::min(most, kPieceRows);
    rows = ((task.rows + pieces - 1) / pieces + 3) / 4 * 4;
    pieces = (task.rows + rows - 1) / rows;
  }

  void run(int64_t index, const RowKernels& kernels) const {
    const int64_t first = index % pieces * rows;
    Piece(task, kernels, index / pieces, first, std::min(rows, task.rows - first)).run();
  }
};

}  // namespace

void stacked_products(const std::vector<StackedProduct>& tasks, int threads,
                      const RowKernels& kernels) {
  int64_t matrices = 0;
  for (const StackedProduct& task : tasks) matrices += task.S;
  std::vector<Cut> cuts;
  std::vector<int64_t> ends;  // of the pieces of each task, counted over all
  for (const StackedProduct& task : tasks) {
    cuts.emplace_back(task, pieces_of_matrix(matrices, threads));
    ends.push_back(task.S * cuts.back().pieces + (ends.empty() ? 0 : ends.back()));
  }
  if (tasks.empty()) return;
  run_tasks(ends.back(), threads, [&](int64_t index) {
    const int64_t at = std::upper_bound(ends.begin(), ends.end(), index) - ends.begin();
    cuts[at].run(at == 0 ? index : index - ends[at - 1], kernels);
  });
}

}  // namespace shazam
