#include "folded_scores.h"

#include <algorithm>

#include "patch_tasks.h"
#include "token_attention.h"

namespace shazam {
namespace {

/// A square matrix of one patch.
struct Square {
  float values[kMaxTeachers * kMaxTeachers];

  ConstRows rows(int64_t N) const { return {values, N, N}; }
  MutableRows out(int64_t N) { return {values, N, N}; }
};

/// Writes M_K to `M`.
void recur(const FoldedScores& task, int64_t b, const RowKernels& kernels, Square& M) {
  const int64_t N = task.N, D = task.D, K = task.K;
  const ConstRows tokens{task.tokens + b * N * D, N, D};
  const uint8_t* present = task.present == nullptr ? nullptr : task.present + b * N;
  Square scores, product;
  for (int64_t layer = 0; layer < K; ++layer) {
    const ConstRows left{task.left + (b * N * K + layer) * D, N, K * D};
    if (layer == 0) {
      kernels.dots(left, tokens, D, 1.0f, M.values);
      softmax_rows(M.values, N, present);
      continue;
    }
    kernels.dots(left, tokens, D, 1.0f, scores.values);
    kernels.combine({M.values, N, 1}, scores.rows(N), N, product.out(N));
    kernels.dots(product.rows(N), M.rows(N), N, 1.0f, scores.values);
    softmax_rows(scores.values, N, present);
    kernels.combine({scores.values, N, 1}, M.rows(N), N, product.out(N));
    std::copy_n(product.values, N * N, M.values);
  }
}

void fold_patch(const FoldedScores& task, int64_t b, const RowKernels& kernels, float* pooled,
                float* weights) {
  const int64_t N = task.N, D = task.D;
  const uint8_t* present = task.present == nullptr ? nullptr : task.present + b * N;
  Square M;
  recur(task, b, kernels, M);
  float share[kMaxTeachers];
  mean_shares(N, present, share);
  float* w = weights + b * N;
  kernels.combine({share, N, 1}, M.rows(N), N, {w, 1, N});
  const ConstRows tokens{task.tokens + b * N * D, N, D};
  kernels.combine({w, N, 1}, tokens, D, {pooled + b * D, 1, D});
}

}  // namespace

void folded_scores(const FoldedScores& task, float* pooled, float* weights, int threads,
                   const RowKernels& kernels) {
  const int64_t bytes = task.N * task.D * (task.K + 1) * static_cast<int64_t>(sizeof(float));
  for_patches(task.B, bytes, threads, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) fold_patch(task, b, kernels, pooled, weights);
  });
}

}  // namespace shazam
