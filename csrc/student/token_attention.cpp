#include "student/token_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "student/patch_tasks.h"

namespace shazam {
namespace {

/// Where one patch's data lies.
class Patch {
 public:
  Patch(const Attention& layer, int64_t patch) : layer_(layer), patch_(patch) {}

  ConstRows query() const { return part(layer_.qkv, 0); }
  ConstRows key() const {
    return layer_.keys == nullptr ? part(layer_.qkv, 1) : rows(layer_.keys);
  }
  ConstRows value() const { return part(layer_.qkv, parts() - 1); }
  const uint8_t* present() const {
    return layer_.present == nullptr ? nullptr : layer_.present + patch_ * layer_.N;
  }
  /// This patch's rows of T or its gradient: one when pooled.
  template <typename T>
  Rows<T> tokens(T* base) const {
    const int64_t rows = layer_.pooled ? 1 : layer_.N;
    return {base + patch_ * rows * layer_.D, rows, layer_.D};
  }
  template <typename T>
  T* map(T* base) const {
    return base + patch_ * layer_.map_stride;
  }
  MutableRows d_query(const AttentionGradient& to) const { return part(to.qkv, 0); }
  MutableRows d_key(const AttentionGradient& to) const {
    return layer_.keys == nullptr ? part(to.qkv, 1) : rows(to.keys);
  }
  MutableRows d_value(const AttentionGradient& to) const { return part(to.qkv, parts() - 1); }

 private:
  /// What lies side by side in a row of qkv.
  int64_t parts() const { return layer_.keys == nullptr ? 3 : 2; }
  template <typename T>
  Rows<T> part(T* base, int64_t index) const {
    const int64_t stride = parts() * layer_.D;
    return {base + patch_ * layer_.N * stride + index * layer_.D, layer_.N, stride};
  }
  template <typename T>
  Rows<T> rows(T* base) const {
    return {base + patch_ * layer_.N * layer_.D, layer_.N, layer_.D};
  }

  const Attention& layer_;
  int64_t patch_;
};

void forward_patch(const Attention& layer, const Patch& patch, float* P, MutableRows T,
                   const RowKernels& kernels) {
  const int64_t N = layer.N, D = layer.D;
  kernels.dots(patch.query(), patch.key(), D, 1.0f / std::sqrt(static_cast<float>(D)), P);
  softmax_rows(P, N, patch.present(), kernels);
  if (!layer.pooled) return kernels.combine({P, N, 1}, patch.value(), D, T);
  float part[kMaxTeachers], pooled[kMaxTeachers];
  mean_parts(N, patch.present(), part);
  pool_map(P, part, N, pooled);
  kernels.combine({pooled, N, 1}, patch.value(), D, T);
}

/// Writes dP and d_value.
void value_gradient(const Attention& layer, const Patch& patch, const float* P, ConstRows d_T,
                    float* dP, MutableRows d_value, const RowKernels& kernels) {
  const int64_t N = layer.N;
  if (!layer.pooled) {
    kernels.dots(d_T, patch.value(), layer.D, 1.0f, dP);
    return kernels.combine({P, 1, N}, d_T, layer.D, d_value);
  }
  // Every row of P V gets the same gradient but for its part.
  float part[kMaxTeachers], pooled[kMaxTeachers], dots[kMaxTeachers];
  mean_parts(N, patch.present(), part);
  pool_map(P, part, N, pooled);
  kernels.dots(d_T, patch.value(), layer.D, 1.0f, dots);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) dP[i * N + j] = part[i] * dots[j];
  }
  kernels.combine({pooled, 1, 0}, d_T, layer.D, d_value);
}

void backward_patch(const Attention& layer, const Patch& patch, const float* P, ConstRows d_T,
                    const AttentionGradient& to, const RowKernels& kernels) {
  const int64_t N = layer.N, D = layer.D;
  float dS[kMaxTeachers * kMaxTeachers];
  value_gradient(layer, patch, P, d_T, dS, patch.d_value(to), kernels);
  softmax_gradient(P, N, 1.0f / std::sqrt(static_cast<float>(D)), dS);
  kernels.combine({dS, N, 1}, patch.key(), D, patch.d_query(to));
  kernels.combine({dS, 1, N}, patch.query(), D, patch.d_key(to));
}

}  // namespace

void softmax_rows(float* scores, int64_t N, const uint8_t* present, const RowKernels& kernels) {
  for (float* row = scores; row != scores + N * N; row += N) {
    if (present != nullptr) {
      for (int64_t j = 0; j < N; ++j) {
        if (!present[j]) row[j] = -std::numeric_limits<float>::infinity();
      }
    }
    // Without the largest score, exp would overflow beyond 88.
    const float largest = *std::max_element(row, row + N);
    for (int64_t j = 0; j < N; ++j) row[j] -= largest;
  }
  kernels.exponentials(scores, N * N);
  for (float* row = scores; row != scores + N * N; row += N) {
    float sum = 0.0f;
    for (int64_t j = 0; j < N; ++j) sum += row[j];
    for (int64_t j = 0; j < N; ++j) row[j] /= sum;
  }
}

void mean_parts(int64_t N, const uint8_t* present, float* part) {
  int64_t count = N;
  if (present != nullptr) count -= std::count(present, present + N, uint8_t{0});
  for (int64_t i = 0; i < N; ++i) {
    part[i] = present == nullptr || present[i] ? 1.0f / static_cast<float>(count) : 0.0f;
  }
}

void pool_map(const float* P, const float* part, int64_t N, float* pooled) {
  std::fill_n(pooled, N, 0.0f);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) pooled[j] += part[i] * P[i * N + j];
  }
}

void softmax_gradient(const float* P, int64_t N, float scale, float* dP) {
  for (int64_t i = 0; i < N; ++i, P += N, dP += N) {
    float mean = 0.0f;
    for (int64_t j = 0; j < N; ++j) mean += P[j] * dP[j];
    for (int64_t j = 0; j < N; ++j) dP[j] = scale * P[j] * (dP[j] - mean);
  }
}

void attention_forward(const Attention& layer, float* P, float* T, int threads,
                       const RowKernels& kernels) {
  const int64_t bytes = layer.N * layer.D * 4 * static_cast<int64_t>(sizeof(float));
  for_patches(layer.B, bytes, threads, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const Patch patch(layer, b);
      forward_patch(layer, patch, patch.map(P), patch.tokens(T), kernels);
    }
  });
}

void attention_backward(const Attention& layer, const float* P, const float* d_T,
                        const AttentionGradient& gradient, int threads,
                        const RowKernels& kernels) {
  const int64_t bytes = layer.N * layer.D * 7 * static_cast<int64_t>(sizeof(float));
  for_patches(layer.B, bytes, threads, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const Patch patch(layer, b);
      backward_patch(layer, patch, patch.map(P), patch.tokens(d_T), gradient, kernels);
    }
  });
}

}  // namespace shazam
