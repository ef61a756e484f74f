#include "folded_scores.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "patch_tasks.h"
#include "token_attention.h"

namespace shazam {
namespace {

/// The matrices of kFoldLanes patches, value by value side by side.
class Lanes {
 public:
  Lanes(int64_t N, int64_t K)
      : N_(N), K_(K), values_((K + 3) * N * N * kFoldLanes + 3 * N * kFoldLanes) {}

  FoldLanes task() {
    float* const scratch = values_.data() + K_ * square();
    float* const rows = scratch + 3 * square();
    return {N_, K_, values_.data(), rows, rows + row(), rows + 2 * row(), scratch};
  }

  /// Puts the raw scores of patch b, and what the mask says of it, into a lane.
  void load(const FoldedScores& task, int64_t b, int64_t lane, const RowKernels& kernels) {
    const ConstRows tokens{task.tokens + b * N_ * task.D, N_, task.D};
    float found[kMaxTeachers * kMaxTeachers];
    for (int64_t layer = 0; layer < K_; ++layer) {
      const ConstRows left{task.left + (b * N_ * K_ + layer) * task.D, N_, K_ * task.D};
      kernels.dots(left, tokens, task.D, 1.0f, found);
      float* const scores = values_.data() + layer * square() + lane;
      for (int64_t e = 0; e < N_ * N_; ++e) scores[e * kFoldLanes] = found[e];
    }
    const uint8_t* present = task.present == nullptr ? nullptr : task.present + b * N_;
    float share[kMaxTeachers];
    mean_shares(N_, present, share);
    float* const penalty = values_.data() + (K_ + 3) * square() + lane;
    for (int64_t i = 0; i < N_; ++i) {
      const bool absent = present != nullptr && !present[i];
      penalty[i * kFoldLanes] = absent ? -std::numeric_limits<float>::infinity() : 0.0f;
      penalty[row() + i * kFoldLanes] = share[i];
    }
  }

 private:
  int64_t square() const { return N_ * N_ * kFoldLanes; }
  int64_t row() const { return N_ * kFoldLanes; }

  int64_t N_, K_;
  std::vector<float> values_;  // lanes that hold no patch are finite: zeros, or an earlier patch
};

/// Patches [first, last), at most kFoldLanes.
void fold_patches(const FoldedScores& task, int64_t first, int64_t last, Lanes& lanes,
                  const RowKernels& kernels, float* pooled, float* weights) {
  const int64_t N = task.N, D = task.D;
  for (int64_t b = first; b < last; ++b) lanes.load(task, b, b - first, kernels);
  const FoldLanes work = lanes.task();
  kernels.fold(work);
  for (int64_t b = first; b < last; ++b) {
    float* const w = weights + b * N;
    for (int64_t i = 0; i < N; ++i) w[i] = work.weights[i * kFoldLanes + b - first];
    const ConstRows tokens{task.tokens + b * N * D, N, D};
    kernels.combine({w, N, 1}, tokens, D, {pooled + b * D, 1, D});
  }
}

}  // namespace

void folded_scores(const FoldedScores& task, float* pooled, float* weights, int threads,
                   const RowKernels& kernels) {
  const int64_t bytes = task.N * task.D * (task.K + 1) * static_cast<int64_t>(sizeof(float));
  for_patches(task.B, bytes, threads, [&](int64_t first, int64_t last) {
    Lanes lanes(task.N, task.K);
    for (int64_t b = first; b < last; b += kFoldLanes) {
      fold_patches(task, b, std::min(last, b + kFoldLanes), lanes, kernels, pooled, weights);
    }
  });
}

}  // namespace shazam
