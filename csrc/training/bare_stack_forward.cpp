#include <algorithm>
#include <vector>

#include "student/token_attention.h"
#include "training/bare_stack.h"
#include "training/bare_stack_values.h"
#include "training/stacked_products.h"

namespace shazam {
namespace {

/// Where a share's values of a layer lie.
struct LayerValues {
  float* next;    // X of the layer behind it; of none behind the last
  float* value;   // likewise
  float* apart;
  float* keys;
  float* pooled;  // of the last layer
};

class ForwardShare : PatchShare {
 public:
  ForwardShare(const BareStack& stack, const RowKernels& kernels, int64_t first, int64_t count,
               const BareStackValues& values)
      : PatchShare(stack, kernels, first, count), values_(values) {}

  void run(const BareStackResult& result, bool kept) const {
    thread_local std::vector<float> passing;
    if (!kept) passing.resize(std::max<size_t>(passing.size(), (5 * s_.N - 1) * count_ * s_.D));
    const float* X = part(s_.tokens, 0, s_.N);
    for (int64_t layer = 0; layer < s_.K; ++layer) {
      const LayerValues to = kept ? kept_values(layer) : passing_values(layer, passing.data());
      score(layer, X, to, result);
      layer + 1 < s_.K ? attend(layer, X, to, result) : attend_pooled(X, to, result);
      X = to.next;
    }
  }

 private:
  LayerValues kept_values(int64_t layer) const {
    return {part(values_.inputs, layer, s_.N), part(values_.value, layer, s_.N),
            part(values_.apart, layer, s_.N - 1), part(values_.keys, layer, s_.N - 1),
            part(values_.pooled, 0, 1)};
  }

  LayerValues passing_values(int64_t layer, float* base) const {
    const int64_t all = count_ * s_.N * s_.D, others = count_ * (s_.N - 1) * s_.D;
    float* const apart = base + 3 * all;
    return {base + layer % 2 * all, base + 2 * all, apart, apart + others, apart + 2 * others};
  }

  /// Writes apart, keys and P of a layer.
  void score(int64_t layer, const float* X, const LayerValues& to,
             const BareStackResult& result) const {
    const int64_t N = s_.N, D = s_.D;
    for (int64_t b = 0; b < count_; ++b) {
      const ConstRows x = patch_rows(X, b, N);
      const MutableRows apart = patch_rows(to.apart, b, N - 1);
      for (int64_t j = 1; j < N; ++j) {
        std::copy_n(x[j], D, apart[j - 1]);
        kernels_.add(apart[j - 1], -1.0f, x[0], D);
      }
    }
    multiply(to.apart, count_ * (N - 1), {values_.maps + layer * D * D, kernels_.panel, D}, to.keys,
             false);
    float scores[kMaxTeachers * kMaxTeachers];
    for (int64_t b = 0; b < count_; ++b) {
      float* const P = map(result.attention, b, layer);
      kernels_.dots(patch_rows(X, b, N), patch_rows<const float>(to.keys, b, N - 1), D, scale(),
                    scores);
      for (int64_t i = 0; i < N; ++i) {
        P[i * N] = 0.0f;
        std::copy_n(scores + i * (N - 1), N - 1, P + i * N + 1);
      }
      softmax_rows(P, N, present(b), kernels_);
    }
  }

  Panels value_map(int64_t layer) const {
    return {s_.qkv + layer * 3 * s_.D * s_.D + 2 * s_.D, kernels_.panel, 3 * s_.D};
  }

  void attend(int64_t layer, const float* X, const LayerValues& to,
              const BareStackResult& result) const {
    const int64_t N = s_.N;
    multiply(X, count_ * N, value_map(layer), to.value, false);
    for (int64_t b = 0; b < count_; ++b) {
      const float* const P = map(result.attention, b, layer);
      kernels_.combine({P, N, 1}, patch_rows<const float>(to.value, b, N), s_.D,
                       patch_rows(to.next, b, N));
    }
  }

  void attend_pooled(const float* X, const LayerValues& to, const BareStackResult& result) const {
    const int64_t N = s_.N, layer = s_.K - 1;
    for (int64_t b = 0; b < count_; ++b) {
      float parts[kMaxTeachers], weights[kMaxTeachers];
      mean_parts(N, present(b), parts);
      pool_map(map(result.attention, b, layer), parts, N, weights);
      kernels_.combine({weights, N, 1}, patch_rows(X, b, N), s_.D, patch_rows(to.pooled, b, 1));
    }
    multiply(to.pooled, count_, value_map(layer), part(result.fused, 0, 1), false);
  }

  const BareStackValues& values_;
};

}  // namespace

int64_t bare_stack_space(const BareStack& stack, bool kept, const RowKernels& kernels) {
  const int64_t D = stack.D, N = stack.N, K = stack.K;
  if (!kept) return K * D * D;
  const int64_t rows = 2 * (K - 1) * N + 2 * K * (N - 1) + 1;  // of a patch
  return K * D * D + stack.B * rows * D + 2 * K * panel_values(D, D, kernels.panel);
}

void bare_stack_forward(const BareStack& stack, const BareStackResult& result, float* space, bool kept,
                        int threads, const RowKernels& kernels) {
  const int64_t D = stack.D, square = D * D;
  const BareStackValues values(stack, space);
  StackedProduct maps{};
  maps.S = stack.K, maps.rows = maps.depth = maps.columns = D;
  maps.left = {stack.qkv + D, 3 * square, 3 * D};
  maps.right = {stack.qkv, 3 * square, 3 * D};
  maps.right_transposed = true;
  maps.out = {values.maps, square, D};
  stacked_products({maps}, threads, kernels);
  for_shares(stack, threads, [&](int64_t first, int64_t count) {
    ForwardShare(stack, kernels, first, count, values).run(result, kept);
  });
}

}  // namespace shazam
