#pragma once

#include <cstdint>
#include <vector>

#include "store/feature_store.h"
#include "student/fold_lanes.h"
#include "student/row_kernels.h"

namespace shazam {

/// The folded student's tensors, row-major as in Python: x W.
struct FoldedTensors {
  std::vector<int64_t> dims;  // columns of every teacher
  int64_t D;
  int64_t K;
  int64_t C;
  const float* weight;         // [sum of dims, D]
  const float* bias;           // [N, D]
  const float* score_maps;     // [D, K * D]
  const float* head_weight_1;  // [D, D]
  const float* head_bias_1;    // [D]
  const float* head_weight_2;  // [D, C]
  const float* head_bias_2;    // [C]
  const float* shift;          // [sum of dims], taken from the features before the product; or null
  const float* vote_weight;    // added logits of each teacher's token, [N, D, C]; or null
  const float* vote_bias;      // [N, C]; null with it
};

/// The whole folded student for tiles of patches, each computed by one thread within its caches:
/// features are widened block by block as the products read them, and values between two products
/// stay in the cache. A patch's results do not depend on the tile that it is in.
class FoldedStudent {
 public:
  explicit FoldedStudent(const FoldedTensors& tensors,
                         const RowKernels& kernels = row_kernels().front());

  int64_t teachers() const { return static_cast<int64_t>(dims_.size()); }
  const std::vector<int64_t>& dims() const { return dims_; }
  int64_t width() const { return D_; }
  int64_t classes() const { return C_; }

  /// Features [B, any], in which the columns of teacher i begin at `starts[i]`; a negative start
  /// says that no patch has this teacher. Writes logits [B, C], the teachers' shares [B, N], and
  /// pooled [B, D], the tokens times these shares. `withheld` [N, B, C], unless null, gets the
  /// logits without each teacher in turn, as if its start were negative; at least two teachers are
  /// there then. Tokens and scores are shared. May be called by any thread.
  void forward(const Matrix& features, const std::vector<int64_t>& starts, float* logits,
               float* shares, float* pooled, float* withheld = nullptr) const;

 private:
  /// A matrix [depth, columns] in panels of its columns.
  struct Packed {
    int64_t depth;
    int64_t columns;
    std::vector<float> panels;
  };

  /// The depth that a projection takes at once.
  struct Block {
    int64_t teacher;
    int64_t first;   // of the teacher's columns
    int64_t start;   // of the features' columns
    int64_t column;  // of all teachers' columns side by side
    int64_t depth;
  };

  std::vector<Block> blocks_of(const std::vector<int64_t>& starts) const;
  Packed pack(const float* values, int64_t depth, int64_t columns, int64_t stride) const;
  Widened tile_of(const Matrix& features, const Block& block, int64_t row, float* to) const;
  void multiply(const Packed& matrix, const float* x, int64_t first, int64_t depth, int64_t rows,
                const float* bias, float* out, int64_t stride, const Widened& next = {}) const;
  void multiply_all(const Packed& matrix, const float* x, int64_t rows, const float* bias,
                    float* out) const;
  void project(const Matrix& features, const std::vector<int64_t>& starts, float* tokens,
               float* room) const;
  void load_scores(const float* tokens, int64_t patches, std::vector<FoldBuffer>& buffers,
                   std::vector<float>& scratch) const;
  void attend(const float* tokens, int64_t patches, const uint8_t* present,
              std::vector<FoldBuffer>& buffers, float* shares, float* pooled) const;
  void classify(const float* pooled, int64_t patches, float* logits,
                std::vector<float>& scratch) const;
  void vote(const float* tokens, int64_t patches, const std::vector<uint8_t>& present,
            float* logits, std::vector<float>& scratch) const;

  std::vector<int64_t> dims_;
  int64_t D_, K_, C_;
  const RowKernels& kernels_;
  std::vector<Packed> projections_;
  std::vector<Packed> score_maps_;
  Packed head_;
  std::vector<float> bias_, head_bias_1_, head_weight_2_, head_bias_2_;  // head_weight_2 is [C, D]
  std::vector<float> shift_;  // empty where nothing is subtracted
  std::vector<float> vote_weight_, vote_bias_;  // [C, N * D] and [N, C]; or empty
};

}  // namespace shazam
