#pragma once

#include <cstdint>

#include "student/row_kernels.h"

namespace shazam {

/// K bare layers over B patches of N tokens, the last one averaged: X <- P (X Wv) where P is the
/// softmax over j of x_i Wq Wk^T x_j^T / sqrt(D). It stays the same when a row of scores is shifted:
/// x_i . z_j with z_j = (x_j - x_0) Wk Wq^T takes one product of N - 1 rows in place of two of N. The
/// mean of the last layer is taken before its Wv, through which then goes one row per patch.
struct BareStack {
  int64_t B;
  int64_t N;  // at most kMaxTeachers
  int64_t D;
  int64_t K;
  const float* tokens;     // [B, N, D], finite also where a teacher is absent
  const float* qkv;        // [K, D, 3D]: query, key and value maps side by side
  const uint8_t* present;  // [B, N], or null when every patch has all teachers
};

/// Floats of `space` for a forward pass or, `kept`, for that and a backward pass. One piece of memory:
/// the C library gives several of this size back to the system in every step, and page faults take
/// as long as the products.
int64_t bare_stack_space(const BareStack& stack, bool kept,
                         const RowKernels& kernels = row_kernels().front());

struct BareStackResult {
  float* fused;      // [B, D]
  float* attention;  // P [B, K, N, N]
};

void bare_stack_forward(const BareStack& stack, const BareStackResult& result, float* space, bool kept,
                        int threads, const RowKernels& kernels = row_kernels().front());

struct BareStackGradient {
  const float* attention;  // of the forward pass
  const float* d_fused;    // [B, D]
  float* d_tokens;         // gets the gradient, [B, N, D]; null: not wanted
  float* d_qkv;            // likewise, [K, D, 3D]
};

/// `space` is as the forward pass left it; gradients take the place of values there.
/// Both passes give the same bits for any number of threads.
void bare_stack_backward(const BareStack& stack, const BareStackGradient& task, float* space,
                         int threads, const RowKernels& kernels = row_kernels().front());

}  // namespace shazam
