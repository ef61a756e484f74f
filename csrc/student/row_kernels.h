#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "store/dtype.h"

namespace shazam {

/// `count` rows of floats, `stride` values from one to the next.
template <typename T>
struct Rows {
  T* data;
  int64_t count;
  int64_t stride;

  T* operator[](int64_t row) const { return data + row * stride; }
};

using ConstRows = Rows<const float>;
using MutableRows = Rows<float>;

/// A matrix of weights read through two steps, so that its transpose costs nothing.
struct Weights {
  const float* data;
  int64_t row_step;
  int64_t column_step;
};

/// What the two distillation losses need to know of a student's row x and a teacher's row y.
struct Comparison {
  float dot;     // <x, y>
  float square;  // <y, y>
  float huber;   // sum of c (z - c / 2), z = x - y, c = z clamped to +-limit
};

/// Gradients of the distillation losses with z, c as above:
/// d_y = across x + own y - slope c and d_x += across y + slope c.
struct Pull {
  float across;
  float own;
  float slope;
  float limit;
};

constexpr int64_t kFoldLanes = 16;  // patches that the recurrence of the folded student takes at once

/// The recurrence over kFoldLanes patches, each of which is one lane: the last axis of every array.
struct FoldLanes {
  int64_t N;
  int64_t K;
  const float* scores;   // S_l [K, N, N]
  const float* penalty;  // [N], -infinity where the teacher is absent, otherwise 0
  const float* part;     // [N], the factor of each row in the mean
  float* shares;         // [N], the mean of the rows of M_K
  float* scratch;        // [3, N, N]
};

// Values of x that a tile's product takes at once, and the fixed distance of its rows, which keeps
// the addresses of a block's rows within one register and apart in the cache.
constexpr int64_t kTileDepth = 256;
constexpr int64_t kTileStride = kTileDepth + 16;

/// Features that become a tile [rows, depth] of float32, its rows kTileStride apart.
struct Widened {
  const std::byte* from = nullptr;
  int64_t stride = 0;  // bytes from one row to the next
  int64_t rows = 0;
  int64_t depth = 0;
  DType dtype = DType::Float32;
  const float* shift = nullptr;  // [depth], which is subtracted; or null
  float* to = nullptr;
  int64_t ahead = 0;  // bytes from each value to one that is read later: it is fetched into the cache
};

/// out [rows, columns] = bias + x weights, or out += x weights without a bias. Every value is summed
/// in the order of the depth, whatever the number of rows.
struct TileProduct {
  const float* x;        // multiply_tile: [rows, depth], kTileStride apart; depth <= kTileDepth
  int64_t x_step;        // multiply_columns: x is [depth, rows], its rows this far apart
  const float* weights;  // panels of RowKernels::panel columns, [depth, panel]
  int64_t panel_step;    // values from one panel to the next
  int64_t weight_step;   // values from one row of a panel to the next
  const float* bias;     // [columns], or null
  float* out;
  int64_t stride;  // of the rows of out
  int64_t rows;
  int64_t columns;
  int64_t depth;
  Widened next = {};  // for the caller's next product: between steps of this one, while memory is waited for
};

/// The arithmetic over rows of any width behind all operations of the student, for one instruction
/// set. Rows need no alignment beyond that of a float. Kernels of different instruction sets sum in
/// different orders; each gives the same bits every time.
struct RowKernels {
  const char* name;

  /// out [left.count, right.count], out[i, j] = scale <left_i, right_j>.
  void (*dots)(ConstRows left, ConstRows right, int64_t width, float scale, float* out);

  /// out_i = sum_j weights[i, j] rows_j, the terms added in the order of j.
  void (*combine)(Weights weights, ConstRows rows, int64_t width, MutableRows out);

  Comparison (*compare)(const float* x, const float* y, int64_t width, float limit);

  /// `d_y` may be null: then only `d_x` is updated.
  void (*pull)(const Pull& pull, const float* x, const float* y, int64_t width, float* d_x,
               float* d_y);

  /// x += factor y.
  void (*add)(float* x, float factor, const float* y, int64_t width);

  /// x = (x - mean) inverse.
  void (*standardise)(float* x, const float* mean, const float* inverse, int64_t width);

  /// x = LayerNorm of relu(x), without gain and bias.
  void (*normalise_relu)(float* x, int64_t width, float epsilon);

  /// x = exp(x) of values that are 0 at most.
  void (*exponentials)(float* x, int64_t count);

  void (*fold)(const FoldLanes& task);

  void (*widen_tile)(const Widened& task);
  void (*multiply_tile)(const TileProduct& task);
  void (*multiply_columns)(const TileProduct& task);  // x is transposed
  int64_t panel;
};

/// Those this CPU can run, fastest first. The last one is portable.
const std::vector<RowKernels>& row_kernels();

}  // namespace shazam
