#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "student/patch_tasks.h"
#include "training/bare_stack.h"
#include "training/panels.h"

namespace shazam {

/// What the passes have in `space`, one kind behind the other: the maps alone if nothing is kept.
struct BareStackValues {
  float* maps;    // Wk Wq^T [K, D, D]
  float* inputs;  // X of all layers but the first [K - 1, B, N, D]
  float* value;   // X Wv of all layers but the last [K - 1, B, N, D]
  float* apart;   // x_j - x_0 [K, B, N - 1, D]
  float* keys;    // z_j [K, B, N - 1, D]
  float* pooled;  // mean of P X in the last layer [B, D]
  float* turned;  // of the backward pass: Wv^T of every layer in panels, and those of (Wk Wq^T)^T

  BareStackValues(const BareStack& s, float* base)
      : maps(base),
        inputs(maps + s.K * s.D * s.D),
        value(inputs + (s.K - 1) * s.B * s.N * s.D),
        apart(value + (s.K - 1) * s.B * s.N * s.D),
        keys(apart + s.K * s.B * (s.N - 1) * s.D),
        pooled(keys + s.K * s.B * (s.N - 1) * s.D),
        turned(pooled + s.B * s.D) {}
};

/// Patches [first, first + count), which go through all layers together: their values stay in a
/// thread's caches.
class PatchShare {
 public:
  PatchShare(const BareStack& stack, const RowKernels& kernels, int64_t first, int64_t count)
      : s_(stack), kernels_(kernels), first_(first), count_(count) {}

 protected:
  const uint8_t* present(int64_t patch) const {
    return s_.present == nullptr ? nullptr : s_.present + (first_ + patch) * s_.N;
  }
  /// The share's part of a layer's values, of which every patch has so many rows.
  template <typename T>
  T* part(T* values, int64_t layer, int64_t rows) const {
    return values + (layer * s_.B + first_) * rows * s_.D;
  }
  /// A patch's part of those of the share.
  template <typename T>
  Rows<T> patch_rows(T* values, int64_t patch, int64_t rows) const {
    return {values + patch * rows * s_.D, rows, s_.D};
  }
  template <typename T>
  T* map(T* attention, int64_t patch, int64_t layer) const {
    return attention + ((first_ + patch) * s_.K + layer) * s_.N * s_.N;
  }
  void multiply(const float* x, int64_t rows, const Panels& weights, float* out, bool added) const {
    multiply_rows({x, rows, s_.D, s_.D, weights, out, added}, kernels_);
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(s_.D)); }

  const BareStack& s_;
  const RowKernels& kernels_;
  int64_t first_, count_;
};

/// Runs body(first, count) on shares of the patches, as many for every thread where they are few.
template <typename Body>
void for_shares(const BareStack& stack, int threads, const Body& body) {
  constexpr int64_t kMostRows = 256;  // of which a tile fits a quarter of a cache
  constexpr int64_t kLeastRows = 24;  // fewer are not worth a thread
  const int64_t most = std::max<int64_t>(1, kMostRows / stack.N);
  const int64_t least = std::max<int64_t>(1, kLeastRows / stack.N);
  const int64_t rounds = (stack.B + most * threads - 1) / (most * threads);
  const int64_t size = std::max(least, (stack.B + rounds * threads - 1) / (rounds * threads));
  run_tasks((stack.B + size - 1) / size, threads, [&](int64_t share) {
    body(share * size, std::min(size, stack.B - share * size));
  });
}

}  // namespace shazam
