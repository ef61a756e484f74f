#pragma once

#include <cstdint>

#include "student/row_kernels.h"

namespace shazam {

enum class Huber {
  Norm,         // of the distance |t - T_i|
  Elementwise,  // of every element of t - T_i, averaged over them
};

/// The cosine and Huber distillation losses of B patches' students t and teachers T_i.
struct Distillation {
  int64_t B;
  int64_t N;
  int64_t D;
  const float* fused;      // t [B, D]
  const float* targets;    // T_i [B, N, D]
  const uint8_t* present;  // [B, N], or null when every patch has all teachers
  double lam;
  double delta;
  Huber huber;
};

/// What `distillation` writes. The gradients may be null; without d_fused there is no d_targets.
struct DistillationResult {
  float* total;      // one value: lam times the sum of all cosine and huber losses
  float* cosine;     // [N], means over the batch
  float* huber;      // [N], likewise
  float* d_fused;    // [B, D], of the total
  float* d_targets;  // [B, N, D], of the total; 0 for absent teachers
};

/// Losses and their gradients in one pass. The same bits for any number of threads.
void distillation(const Distillation& task, const DistillationResult& result, int threads,
                  const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
