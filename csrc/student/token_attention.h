#pragma once

#include <cstdint>

#include "student/row_kernels.h"

namespace shazam {

/// The most teachers of a patch: its attention weights are kept on the stack.
constexpr int64_t kMaxTeachers = 32;

/// Row softmax of the scores [N, N] over the teachers that are present (null: all of them), in
/// place. An absent teacher's column becomes 0, whatever its scores.
void softmax_rows(float* scores, int64_t N, const uint8_t* present,
                  const RowKernels& kernels = row_kernels().front());

/// part [N]: the factor of each teacher's row in the mean over those present.
void mean_parts(int64_t N, const uint8_t* present, float* part);

/// pooled_j = sum_i part_i P_ij: the weight of value j in the mean of P V.
void pool_map(const float* P, const float* part, int64_t N, float* pooled);

/// From dP, in place: the gradient of the products that P is the softmax of, times `scale`.
void softmax_gradient(const float* P, int64_t N, float scale, float* dP);

/// One attention layer over B patches of N teachers: P = softmax(Q K^T / sqrt(D)), T = P V.
struct Attention {
  int64_t B;
  int64_t N;  // at most kMaxTeachers
  int64_t D;
  const float* qkv;        // [B, N, 3D]: query, key and value side by side; [B, N, 2D] with keys
  const uint8_t* present;  // [B, N], or null when every patch has all teachers
  bool pooled;             // T is averaged over the present teachers: [B, D] instead of [B, N, D]
  int64_t map_stride;      // values from one patch's P [N, N] to the next one's
  const float* keys = nullptr;  // [B, N, D]; null: they are in qkv
};

/// Writes P and T.
void attention_forward(const Attention& layer, float* P, float* T, int threads,
                       const RowKernels& kernels = row_kernels().front());

/// Where `attention_backward` writes.
struct AttentionGradient {
  float* qkv;             // of the shape of qkv
  float* keys = nullptr;  // [B, N, D], exactly where the layer has keys
};

/// Writes the gradient, given P and d_T of T's shape.
void attention_backward(const Attention& layer, const float* P, const float* d_T,
                        const AttentionGradient& gradient, int threads,
                        const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
