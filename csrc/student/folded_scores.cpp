#include "student/folded_scores.h"

#include <algorithm>
#include <limits>

#include "student/fold_lanes.h"
#include "student/patch_tasks.h"
#include "student/token_attention.h"

namespace shazam {

void FoldBuffer::load_scores(int64_t lane, int64_t layer, ConstRows left, ConstRows tokens,
                             int64_t width, const RowKernels& kernels) {
  float found[kMaxTeachers * kMaxTeachers];
  kernels.dots(left, tokens, width, 1.0f, found);
  float* const scores = values_.data() + layer * square() + lane;
  for (int64_t e = 0; e < N_ * N_; ++e) scores[e * kFoldLanes] = found[e];
}

void FoldBuffer::load_mask(int64_t lane, const uint8_t* present) {
  float part[kMaxTeachers];
  mean_parts(N_, present, part);
  float* const penalty = values_.data() + rows() + lane;
  for (int64_t i = 0; i < N_; ++i) {
    const bool absent = present != nullptr && !present[i];
    penalty[i * kFoldLanes] = absent ? -std::numeric_limits<float>::infinity() : 0.0f;
    penalty[row() + i * kFoldLanes] = part[i];
  }
}

void FoldBuffer::run(const RowKernels& kernels) {
  float* const penalty = values_.data() + rows();
  kernels.fold({N_, K_, values_.data(), penalty, penalty + row(), penalty + 2 * row(),
                values_.data() + K_ * square()});
}

namespace {

/// Patches [first, last), at most kFoldLanes.
void fold_patches(const FoldedScores& task, int64_t first, int64_t last, FoldBuffer& buffer,
                  const RowKernels& kernels, float* pooled, float* shares) {
  const int64_t N = task.N, D = task.D, K = task.K;
  const auto tokens = [&](int64_t b) { return ConstRows{task.tokens + b * N * D, N, D}; };
  for (int64_t b = first; b < last; ++b) {
    buffer.load_mask(b - first, task.present == nullptr ? nullptr : task.present + b * N);
    for (int64_t layer = 0; layer < K; ++layer) {
      const ConstRows left{task.left + (b * N * K + layer) * D, N, K * D};
      buffer.load_scores(b - first, layer, left, tokens(b), D, kernels);
    }
  }
  buffer.run(kernels);
  for (int64_t b = first; b < last; ++b) {
    float* const w = shares + b * N;
    for (int64_t i = 0; i < N; ++i) w[i] = buffer.share(b - first, i);
    kernels.combine({w, N, 1}, tokens(b), D, {pooled + b * D, 1, D});
  }
}

}  // namespace

void folded_scores(const FoldedScores& task, float* pooled, float* shares, int threads,
                   const RowKernels& kernels) {
  const int64_t bytes = task.N * task.D * (task.K + 1) * static_cast<int64_t>(sizeof(float));
  for_patches(task.B, bytes, threads, [&](int64_t first, int64_t last) {
    FoldBuffer buffer(task.N, task.K);
    for (int64_t b = first; b < last; b += kFoldLanes) {
      fold_patches(task, b, std::min(last, b + kFoldLanes), buffer, kernels, pooled, shares);
    }
  });
}

}  // namespace shazam
