#include "student/distillation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "student/patch_tasks.h"

namespace shazam {
namespace {

/// Squares of norms below this count as this: EPSILON^2 of the definition.
constexpr double kFloor = 1e-16;

double norm(double square) { return std::sqrt(std::max(square, kFloor)); }

/// One teacher of one patch: its losses, and the coefficients of its gradients.
struct Terms {
  double cosine_loss;
  double huber_loss;
  Pull pull;
  double own_fused;  // coefficient of t in d_fused
};

class PatchLosses {
 public:
  PatchLosses(const Distillation& task, const RowKernels& kernels)
      : task_(task),
        kernels_(kernels),
        limit_(task.huber == Huber::Elementwise ? static_cast<float>(task.delta)
                                                : std::numeric_limits<float>::infinity()),
        weight_(task.lam / static_cast<double>(task.B)) {}

  /// Adds the losses of patch b to cosine[i] and huber[i] and writes its gradients.
  void add(int64_t b, const DistillationResult& result, double* cosine, double* huber) const {
    const int64_t N = task_.N, D = task_.D;
    const float* t = task_.fused + b * D;
    const float square = kernels_.compare(t, t, D, limit_).square;
    float* d_t = result.d_fused == nullptr ? nullptr : result.d_fused + b * D;
    if (d_t != nullptr) std::fill_n(d_t, D, 0.0f);
    double own = 0.0;
    for (int64_t i = 0; i < N; ++i) {
      const int64_t row = (b * N + i) * D;
      float* d_T = result.d_targets == nullptr ? nullptr : result.d_targets + row;
      if (task_.present != nullptr && !task_.present[b * N + i]) {
        if (d_T != nullptr) std::fill_n(d_T, D, 0.0f);
        continue;
      }
      const float* T = task_.targets + row;
      const Terms terms = compare(square, kernels_.compare(t, T, D, limit_));
      cosine[i] += terms.cosine_loss;
      huber[i] += terms.huber_loss;
      own += terms.own_fused;
      if (d_t != nullptr) kernels_.pull(terms.pull, t, T, D, d_t, d_T);
    }
    if (d_t == nullptr) return;
    const auto factor = static_cast<float>(own);
    for (int64_t d = 0; d < D; ++d) d_t[d] += factor * t[d];
  }

 private:
  /// `square` is <t, t>. The coefficients of t and T_i may cancel, so they are not rounded on the
  /// way. A clamped norm is a constant: its own coefficient is 0.
  Terms compare(double square, const Comparison& found) const {
    const double product = norm(square) * norm(found.square);
    const double cosine = found.dot / product;
    const auto [loss, slope] = huber(found.huber);
    Terms terms;
    terms.cosine_loss = 1.0 - cosine;
    terms.huber_loss = loss;
    terms.own_fused = square >= kFloor ? weight_ * cosine / square : 0.0;
    terms.pull.across = static_cast<float>(-weight_ / product);
    terms.pull.own = found.square >= kFloor ? static_cast<float>(weight_ * cosine / found.square) : 0;
    terms.pull.slope = static_cast<float>(weight_ * slope);
    terms.pull.limit = limit_;
    return terms;
  }

  /// The Huber loss, and the factor of (clamped) t - T_i in its gradient.
  std::pair<double, double> huber(double sum) const {
    if (task_.huber == Huber::Elementwise) {
      const double share = 1.0 / static_cast<double>(task_.D);
      return {sum * share, share};
    }
    const double delta = task_.delta, square = 2.0 * sum;
    if (square <= delta * delta) return {sum, 1.0};
    const double r = std::sqrt(square);
    return {delta * r - 0.5 * delta * delta, delta / r};
  }

  const Distillation& task_;
  const RowKernels& kernels_;
  float limit_;    // where t - T_i is clamped
  double weight_;  // of a patch's losses in the total
};

}  // namespace

void distillation(const Distillation& task, const DistillationResult& result, int threads,
                  const RowKernels& kernels) {
  const int64_t N = task.N;
  const int64_t bytes = 2 * (N + 1) * task.D * static_cast<int64_t>(sizeof(float));
  const int64_t size = patches_per_task(bytes);
  const PatchLosses losses(task, kernels);
  // One row of sums for each task, added up in order: no sum depends on which thread did what.
  std::vector<double> sums((task.B + size - 1) / size * 2 * N, 0.0);
  for_patches(task.B, bytes, threads, [&](int64_t first, int64_t last) {
    double* cosine = sums.data() + first / size * 2 * N;
    for (int64_t b = first; b < last; ++b) losses.add(b, result, cosine, cosine + N);
  });
  double total = 0.0;
  for (int64_t i = 0; i < 2 * N; ++i) {
    double sum = 0.0;
    for (size_t row = i; row < sums.size(); row += 2 * N) sum += sums[row];
    const double mean = sum / static_cast<double>(task.B);
    (i < N ? result.cosine[i] : result.huber[i - N]) = static_cast<float>(mean);
    total += mean;
  }
  *result.total = static_cast<float>(task.lam * total);
}

}  // namespace shazam
