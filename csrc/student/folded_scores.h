#pragma once

#include <cstdint>

#include "student/row_kernels.h"

namespace shazam {

/// The recurrence of the folded student over B patches of N teachers and K layers: with M_0 = I,
/// M_l = softmax(M_{l-1} S_l M_{l-1}^T) M_{l-1}, where S_l = T B_l T^T are the raw scores.
struct FoldedScores {
  int64_t B;
  int64_t N;  // at most kMaxTeachers
  int64_t D;
  int64_t K;
  const float* left;       // [B, N, K, D]: the rows of T B_l for all l, side by side
  const float* tokens;     // T [B, N, D]; the rows of absent teachers are finite
  const uint8_t* present;  // [B, N], or null when every patch has all teachers
};

/// Writes the teachers' shares w = mean of the rows of M_K [B, N], and pooled = w T [B, D].
void folded_scores(const FoldedScores& task, float* pooled, float* shares, int threads,
                   const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
