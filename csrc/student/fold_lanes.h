#pragma once

#include <cstdint>
#include <vector>

#include "student/row_kernels.h"

namespace shazam {

/// The raw scores of up to kFoldLanes patches, value by value side by side, and the recurrence over
/// them. Lanes that hold no patch are finite or come from an earlier one; no lane sees another.
class FoldBuffer {
 public:
  FoldBuffer(int64_t N, int64_t K)
      : N_(N), K_(K), values_((K + 3) * N * N * kFoldLanes + 3 * N * kFoldLanes) {}

  /// Computes the scores of one layer: the dot products of `left` and `tokens`, both [N, width].
  void load_scores(int64_t lane, int64_t layer, ConstRows left, ConstRows tokens, int64_t width,
                   const RowKernels& kernels);

  /// `present` [N], or null when the patch has all teachers.
  void load_mask(int64_t lane, const uint8_t* present);

  /// May be run again with other masks: the scores stay as they are.
  void run(const RowKernels& kernels);

  /// After `run`: the share of a teacher in the mean of the rows of M_K.
  float share(int64_t lane, int64_t teacher) const {
    return values_[rows() + 2 * row() + teacher * kFoldLanes + lane];
  }

 private:
  int64_t square() const { return N_ * N_ * kFoldLanes; }
  int64_t row() const { return N_ * kFoldLanes; }
  int64_t rows() const { return (K_ + 3) * square(); }

  int64_t N_, K_;
  // scores [K, N, N], scratch [3, N, N], penalty, part and shares [N]
  std::vector<float> values_;
};

}  // namespace shazam
