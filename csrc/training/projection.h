#pragma once

#include <cstdint>
#include <vector>

#include "store/feature_store.h"
#include "student/row_kernels.h"

namespace shazam {

/// Chosen rows of a table of features, standardised, each teacher's columns through its own map.
struct Projection {
  Matrix features;
  const int64_t* rows;        // [B], of the features; null: all of them, in order
  int64_t B;
  std::vector<int64_t> dims;  // columns of every teacher
  int64_t D;
  const float* mean;          // [sum of dims]
  const float* scale;         // [sum of dims], by which features are divided
  const uint8_t* present;     // [B, N], or null; a missing teacher's columns count 0
  const float* weight;        // [sum of dims, D]
  const float* bias;          // [N, D]
  float* columns;             // gets what is multiplied, [B, sum of dims]; or null
  float* tokens;              // gets the result, [B, N, D]
};

/// Features are standardised on their way into the products. The same bits for any number of threads.
void project(const Projection& task, int threads,
             const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
