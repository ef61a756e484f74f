#pragma once

#include <cstdint>

#include "student/row_kernels.h"

namespace shazam {

/// Copies [rows, depth], `stride` apart, into a tile.
void copy_tile(const float* x, int64_t rows, int64_t depth, int64_t stride, float* tile);

/// Copies the transpose of [columns, depth], `stride` apart, into a panel [depth, panel].
void copy_panel(const float* from, int64_t columns, int64_t depth, int64_t stride, int64_t panel,
                float* to);

/// Floats of all panels of [depth, columns].
int64_t panel_values(int64_t depth, int64_t columns, int64_t panel);

/// Copies the transpose of [columns, depth] into as many panels as it takes, one behind the other.
void transpose_into_panels(const float* from, int64_t columns, int64_t depth, int64_t stride,
                           int64_t panel, float* to);

/// Weights [depth, columns] as a TileProduct takes them.
struct Panels {
  const float* data;
  int64_t panel_step;
  int64_t row_step;
};

/// out [rows, columns] = x weights by one thread, x [rows, depth] and out contiguous; `added` to what
/// out holds, or in place of it.
struct RowsProduct {
  const float* x;
  int64_t rows;
  int64_t depth;
  int64_t columns;
  Panels weights;
  float* out;
  bool added;
};

void multiply_rows(const RowsProduct& task, const RowKernels& kernels);

}  // namespace shazam
