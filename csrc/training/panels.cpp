#include "training/panels.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace shazam {
namespace {

constexpr int64_t kSide = 4;  // of the squares that are transposed in registers
using Four = float __attribute__((vector_size(16)));
using Order = int32_t __attribute__((vector_size(16)));

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

}  // namespace

void copy_tile(const float* x, int64_t rows, int64_t depth, int64_t stride, float* tile) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(tile + row * kTileStride, x + row * stride, depth * sizeof(float));
  }
}

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

int64_t panel_values(int64_t depth, int64_t columns, int64_t panel) {
  return (columns + panel - 1) / panel * panel * depth;
}

void transpose_into_panels(const float* from, int64_t columns, int64_t depth, int64_t stride,
                           int64_t panel, float* to) {
  for (int64_t c = 0; c < columns; c += panel) {
    copy_panel(from + c * stride, std::min(panel, columns - c), depth, stride, panel, to + c * depth);
  }
}

void multiply_rows(const RowsProduct& task, const RowKernels& kernels) {
  if (task.rows == 0) return;
  thread_local std::vector<float> tile, zeros;
  tile.resize(std::max<size_t>(tile.size(), task.rows * kTileStride));
  zeros.resize(std::max<size_t>(zeros.size(), task.columns));
  for (int64_t k = 0; k < task.depth; k += kTileDepth) {
    const int64_t depth = std::min(kTileDepth, task.depth - k);
    copy_tile(task.x + k, task.rows, depth, task.depth, tile.data());
    const float* const begin = k == 0 && !task.added ? zeros.data() : nullptr;
    kernels.multiply_tile({tile.data(), 0, task.weights.data + k * task.weights.row_step,
                           task.weights.panel_step, task.weights.row_step, begin, task.out,
                           task.columns, task.rows, task.columns, depth});
  }
}

}  // namespace shazam
