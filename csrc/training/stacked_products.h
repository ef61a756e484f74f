#pragma once

#include <cstdint>
#include <vector>

#include "student/row_kernels.h"

namespace shazam {

/// S matrices with the values of a row side by side.
template <typename T>
struct MatrixStack {
  T* data;
  int64_t step;    // values from one matrix to the next; 0: one matrix for all
  int64_t stride;  // values from one row to the next

  T* operator[](int64_t index) const { return data + index * step; }
};

/// out = left right + bias, S times: [rows, depth] [depth, columns]. `out` overlaps nothing.
struct StackedProduct {
  int64_t S;
  int64_t rows;
  int64_t depth;
  int64_t columns;
  MatrixStack<const float> left;   // transposed: [depth, rows]
  MatrixStack<const float> right;  // transposed: [columns, depth]
  bool left_transposed;            // not both
  bool right_transposed;
  const float* bias;  // [S, columns], or null
  MatrixStack<float> out;
};

/// All of the tasks, which must not depend on each other. Matrices of many rows are cut into pieces.
/// Every value is summed in the order of the depth: the same bits for any number of threads.
void stacked_products(const std::vector<StackedProduct>& tasks, int threads,
                      const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
