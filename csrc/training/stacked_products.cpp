#include "training/stacked_products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "store/thread_pool.h"

namespace shazam {
namespace {

constexpr int64_t kSide = 4;  // of the squares that are transposed in registers
using Four = float __attribute__((vector_size(16)));

int64_t tiles_size(int64_t rows, int64_t depth) {
  return rows * kTileStride * ((depth + kTileDepth - 1) / kTileDepth);
}

/// Copies [rows, depth] into tiles of kTileDepth of the depth, one behind the other.
void copy_tiles(const float* x, int64_t rows, int64_t depth, int64_t stride, float* tiles) {
  for (int64_t first = 0; first < depth; first += kTileDepth) {
    const size_t bytes = std::min(kTileDepth, depth - first) * sizeof(float);
    for (int64_t row = 0; row < rows; ++row, tiles += kTileStride) {
      std::memcpy(tiles, x + row * stride + first, bytes);
    }
  }
}

/// A left matrix in tiles, in a buffer of this thread's that is kept for the next one.
const float* left_tiles(const StackedProduct& task, int64_t index) {
  thread_local std::vector<float> tiles;
  tiles.resize(std::max<size_t>(tiles.size(), tiles_size(task.rows, task.depth)));
  copy_tiles(task.left[index], task.rows, task.depth, task.left.stride, tiles.data());
  return tiles.data();
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
  for (int k = 0; k < kSide; ++k) {
    const Four column = {a[k], b[k], c[k], d[k]};
    std::memcpy(to + k * to_stride, &column, sizeof(column));
  }
}

/// Copies the transpose of [columns, depth] into panels [depth, panel], one behind the other.
void copy_panels(const float* w, int64_t columns, int64_t depth, int64_t stride, int64_t panel,
                 float* panels) {
  for (int64_t first = 0; first < columns; first += panel, panels += depth * panel) {
    const int64_t width = std::min(panel, columns - first);
    const int64_t whole = width / kSide * kSide, deep = depth / kSide * kSide;
    const float* const from = w + first * stride;
    for (int64_t k = 0; k < deep; k += kSide) {
      for (int64_t c = 0; c < whole; c += kSide) {
        transpose_square(from + c * stride + k, stride, panels + k * panel + c, panel);
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t k = c < whole ? deep : 0; k < depth; ++k) {
        panels[k * panel + c] = from[c * stride + k];
      }
    }
  }
}

/// One matrix of a stack.
class Product {
 public:
  Product(const StackedProduct& task, const RowKernels& kernels, int64_t index)
      : task_(task),
        kernels_(kernels),
        right_(task.right[index]),
        panel_step_(kernels.panel),
        weight_step_(task.right.stride),
        bias_(task.bias == nullptr ? nullptr : task.bias + index * task.columns),
        out_(task.out[index]) {
    if (bias_ == nullptr) zeros().resize(std::max<size_t>(zeros().size(), task.columns));
    if (task.right_transposed) transpose_right();
  }

  /// Of tiles that `copy_tiles` made.
  void run(const float* tiles) const {
    for (int64_t first = 0; first < task_.depth; first += kTileDepth) {
      kernels_.multiply_tile(block(tiles, 0, first));
      tiles += task_.rows * kTileStride;
    }
  }

  void run_transposed(const float* left) const {
    for (int64_t first = 0; first < task_.depth; first += kTileDepth) {
      kernels_.multiply_columns(block(left, task_.left.stride, first));
      left += kTileDepth * task_.left.stride;
    }
  }

 private:
  static std::vector<float>& zeros() {
    thread_local std::vector<float> values;  // kept for the thread's next matrix
    return values;
  }

  void transpose_right() {
    thread_local std::vector<float> panels;
    const int64_t panel = kernels_.panel, count = (task_.columns + panel - 1) / panel;
    panels.resize(std::max<size_t>(panels.size(), count * panel * task_.depth));
    copy_panels(right_, task_.columns, task_.depth, task_.right.stride, panel, panels.data());
    right_ = panels.data(), panel_step_ = task_.depth * panel, weight_step_ = panel;
  }

  TileProduct block(const float* left, int64_t left_step, int64_t first) const {
    const float* const begin = bias_ == nullptr ? zeros().data() : bias_;
    return {left, left_step, right_ + first * weight_step_, panel_step_, weight_step_,
            first == 0 ? begin : nullptr, out_, task_.out.stride, task_.rows, task_.columns,
            std::min(kTileDepth, task_.depth - first)};
  }

  const StackedProduct& task_;
  const RowKernels& kernels_;
  const float* right_;
  int64_t panel_step_, weight_step_;
  const float* bias_;
  float* out_;
};

}  // namespace

void stacked_product(const StackedProduct& task, int threads, const RowKernels& kernels) {
  if (task.left_transposed) {
    parallel_for(task.S, threads, [&](int64_t index) {
      Product(task, kernels, index).run_transposed(task.left[index]);
    });
    return;
  }
  const bool shared = task.left.step == 0;
  const float* const common = shared ? left_tiles(task, 0) : nullptr;
  const auto multiply = [&](int64_t index) {
    Product(task, kernels, index).run(shared ? common : left_tiles(task, index));
  };
  parallel_for(task.S, threads, multiply);
}

}  // namespace shazam
