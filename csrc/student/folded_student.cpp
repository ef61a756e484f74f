#include "student/folded_student.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "store/convert.h"

namespace shazam {
namespace {

constexpr int64_t kChunkPatches = 3 * kFoldLanes;  // whose tokens and products fill half a cache
constexpr int64_t kRowsAtOnce = 12;  // that are widened into the nearest cache, see kBlockRows
constexpr float kLayerNormEpsilon = 1e-5f;  // PyTorch's default

/// Copies [rows, depth], `stride` apart, into the form that products take: depth by kTileDepth.
void copy_blocks(const float* x, int64_t rows, int64_t depth, float* blocks) {
  for (int64_t first = 0; first < depth; first += kTileDepth) {
    const size_t bytes = std::min(kTileDepth, depth - first) * sizeof(float);
    for (int64_t row = 0; row < rows; ++row, blocks += kTileStride) {
      std::memcpy(blocks, x + row * depth + first, bytes);
    }
  }
}

int64_t blocks_size(int64_t rows, int64_t depth) {
  return rows * kTileStride * ((depth + kTileDepth - 1) / kTileDepth);
}

}  // namespace

FoldedStudent::FoldedStudent(const FoldedTensors& tensors, const RowKernels& kernels)
    : dims_(tensors.dims),
      D_(tensors.D),
      K_(tensors.K),
      C_(tensors.C),
      kernels_(kernels),
      head_(pack(tensors.head_weight_1, D_, D_, D_)),
      bias_(tensors.bias, tensors.bias + teachers() * D_),
      head_bias_1_(tensors.head_bias_1, tensors.head_bias_1 + D_),
      head_weight_2_(C_ * D_),
      head_bias_2_(tensors.head_bias_2, tensors.head_bias_2 + C_) {
  const float* weight = tensors.weight;
  for (int64_t dim : dims_) {
    projections_.push_back(pack(weight, dim, D_, D_));
    weight += dim * D_;
  }
  if (tensors.shift != nullptr) {
    const int64_t columns = std::accumulate(dims_.begin(), dims_.end(), int64_t{0});
    shift_.assign(tensors.shift, tensors.shift + columns);
  }
  if (tensors.vote_weight != nullptr) {
    const int64_t rows = teachers() * D_;
    vote_weight_.resize(C_ * rows);
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t c = 0; c < C_; ++c) vote_weight_[c * rows + k] = tensors.vote_weight[k * C_ + c];
    }
    vote_bias_.assign(tensors.vote_bias, tensors.vote_bias + teachers() * C_);
  }
  for (int64_t layer = 0; layer < K_; ++layer) {
    score_maps_.push_back(pack(tensors.score_maps + layer * D_, D_, D_, K_ * D_));
  }
  for (int64_t d = 0; d < D_; ++d) {
    for (int64_t c = 0; c < C_; ++c) head_weight_2_[c * D_ + d] = tensors.head_weight_2[d * C_ + c];
  }
}

FoldedStudent::Packed FoldedStudent::pack(const float* values, int64_t depth, int64_t columns,
                                          int64_t stride) const {
  const int64_t panel = kernels_.panel, count = (columns + panel - 1) / panel;
  Packed packed{depth, columns, std::vector<float>(count * depth * panel)};
  float* to = packed.panels.data();
  for (int64_t first = 0; first < columns; first += panel) {
    const int64_t width = std::min(panel, columns - first);
    for (int64_t k = 0; k < depth; ++k, to += panel) {
      std::copy_n(values + k * stride + first, width, to);
    }
  }
  return packed;
}

/// The part of a product that the rows [first, first + depth) of the matrix contribute.
void FoldedStudent::multiply(const Packed& matrix, const float* x, int64_t first, int64_t depth,
                             int64_t rows, const float* bias, float* out, int64_t stride,
                             const Widened& next) const {
  kernels_.multiply_tile({x, 0, matrix.panels.data() + first * kernels_.panel,
                          matrix.depth * kernels_.panel, kernels_.panel, bias, out, stride, rows,
                          matrix.columns, depth, next});
}

/// The whole product of what `copy_blocks` made.
void FoldedStudent::multiply_all(const Packed& matrix, const float* x, int64_t rows,
                                 const float* bias, float* out) const {
  for (int64_t first = 0; first < matrix.depth; first += kTileDepth) {
    const int64_t depth = std::min(kTileDepth, matrix.depth - first);
    multiply(matrix, x, first, depth, rows, first == 0 ? bias : nullptr, out, matrix.columns);
    x += rows * kTileStride;
  }
}

/// The tile of one block of columns and up to kRowsAtOnce rows. Subtracted before the product, a mean
/// that is large for its spread costs no digits.
Widened FoldedStudent::tile_of(const Matrix& features, const Block& block, int64_t row,
                               float* to) const {
  return {features.row(row) + block.start * item_size(features.dtype),
          features.stride,
          std::min(kRowsAtOnce, features.rows - row),
          block.depth,
          features.dtype,
          shift_.empty() ? nullptr : shift_.data() + block.column,
          to};
}

void FoldedStudent::project(const Matrix& features, const std::vector<int64_t>& starts,
                            float* tokens, float* room) const {
  const int64_t N = teachers(), rows = features.rows;
  const std::vector<Block> blocks = blocks_of(starts);
  const int64_t groups = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  const auto steps = static_cast<int64_t>(blocks.size()) * groups;
  const auto tile_at = [&](int64_t step) {
    if (step >= steps) return Widened{};
    return tile_of(features, blocks[step / groups], step % groups * kRowsAtOnce,
                   room + step % 2 * kRowsAtOnce * kTileStride);
  };
  Widened tile = tile_at(0), next = tile_at(1);
  kernels_.widen_tile(tile);
  for (int64_t step = 0; step < steps; ++step) {
    const auto [i, first, start, column, depth] = blocks[step / groups];
    const Widened later = tile_at(step + 2);
    if (later.rows > 0) next.ahead = later.from - next.from;
    const int64_t row = step % groups * kRowsAtOnce;
    multiply(projections_[i], tile.to, first, depth, tile.rows,
             first == 0 ? bias_.data() + i * D_ : nullptr, tokens + (row * N + i) * D_, N * D_, next);
    tile = next;
    next = later;
  }
  for (int64_t i = 0; i < N; ++i) {
    if (starts[i] >= 0) continue;
    for (int64_t row = 0; row < rows; ++row) std::fill_n(tokens + (row * N + i) * D_, D_, 0.0f);
  }
}

std::vector<FoldedStudent::Block> FoldedStudent::blocks_of(
    const std::vector<int64_t>& starts) const {
  std::vector<Block> blocks;
  int64_t column = 0;  // of the teachers side by side
  for (int64_t i = 0; i < teachers(); column += dims_[i], ++i) {
    for (int64_t first = 0; first < dims_[i] && starts[i] >= 0; first += kTileDepth) {
      const int64_t depth = std::min(kTileDepth, dims_[i] - first);
      blocks.push_back({i, first, starts[i] + first, column + first, depth});
    }
  }
  return blocks;
}

void FoldedStudent::load_scores(const float* tokens, int64_t patches,
                                std::vector<FoldBuffer>& buffers,
                                std::vector<float>& scratch) const {
  const int64_t N = teachers(), rows = patches * N, size = blocks_size(rows, D_);
  scratch.resize(std::max<size_t>(scratch.size(), size + rows * D_ + D_));
  float* const left = scratch.data() + size;
  float* const no_bias = left + rows * D_;
  std::fill_n(no_bias, D_, 0.0f);
  copy_blocks(tokens, rows, D_, scratch.data());
  for (int64_t layer = 0; layer < K_; ++layer) {
    multiply_all(score_maps_[layer], scratch.data(), rows, no_bias, left);
    for (int64_t b = 0; b < patches; ++b) {
      buffers[b / kFoldLanes].load_scores(b % kFoldLanes, layer, {left + b * N * D_, N, D_},
                                          {tokens + b * N * D_, N, D_}, D_, kernels_);
    }
  }
}

void FoldedStudent::attend(const float* tokens, int64_t patches, const uint8_t* present,
                           std::vector<FoldBuffer>& buffers, float* shares, float* pooled) const {
  const int64_t N = teachers();
  for (int64_t b = 0; b < patches; ++b) buffers[b / kFoldLanes].load_mask(b % kFoldLanes, present);
  for (FoldBuffer& buffer : buffers) buffer.run(kernels_);
  for (int64_t b = 0; b < patches; ++b) {
    float* const w = shares + b * N;
    for (int64_t i = 0; i < N; ++i) w[i] = buffers[b / kFoldLanes].share(b % kFoldLanes, i);
    kernels_.combine({w, N, 1}, {tokens + b * N * D_, N, D_}, D_, {pooled + b * D_, 1, D_});
  }
}

void FoldedStudent::classify(const float* pooled, int64_t patches, float* logits,
                             std::vector<float>& scratch) const {
  const int64_t size = blocks_size(patches, D_);
  scratch.resize(std::max<size_t>(scratch.size(), size + patches * D_));
  float* const hidden = scratch.data() + size;
  copy_blocks(pooled, patches, D_, scratch.data());
  multiply_all(head_, scratch.data(), patches, head_bias_1_.data(), hidden);
  for (int64_t b = 0; b < patches; ++b) kernels_.normalise_relu(hidden + b * D_, D_, kLayerNormEpsilon);
  kernels_.dots({hidden, patches, D_}, {head_weight_2_.data(), C_, D_}, D_, 1.0f, logits);
  for (int64_t b = 0; b < patches; ++b) {
    for (int64_t c = 0; c < C_; ++c) logits[b * C_ + c] += head_bias_2_[c];
  }
}

/// Adds the mean over all teachers of their own logits, 0 for those that are not there.
void FoldedStudent::vote(const float* tokens, int64_t patches, const std::vector<uint8_t>& present,
                         float* logits, std::vector<float>& scratch) const {
  const int64_t N = teachers();
  const float part = 1.0f / static_cast<float>(N);
  scratch.resize(std::max<size_t>(scratch.size(), patches * C_));
  for (int64_t i = 0; i < N; ++i) {
    if (!present[i]) continue;
    kernels_.dots({tokens + i * D_, patches, N * D_}, {vote_weight_.data() + i * D_, C_, N * D_},
                  D_, part, scratch.data());
    for (int64_t b = 0; b < patches; ++b) {
      for (int64_t c = 0; c < C_; ++c) {
        logits[b * C_ + c] += scratch[b * C_ + c] + part * vote_bias_[i * C_ + c];
      }
    }
  }
}

void FoldedStudent::forward(const Matrix& features, const std::vector<int64_t>& starts,
                            float* logits, float* shares, float* pooled,
                            float* withheld) const {
  const int64_t N = teachers(), B = features.rows;
  thread_local std::vector<float> tokens, block, scratch;  // kept for the thread's next tile
  tokens.resize(std::max<size_t>(tokens.size(), B * N * D_));
  block.resize(2 * kRowsAtOnce * kTileStride);
  project(features, starts, tokens.data(), block.data());
  std::vector<uint8_t> present(N);
  for (int64_t i = 0; i < N; ++i) present[i] = starts[i] >= 0;
  for (int64_t b = 0; b < B; b += kChunkPatches) {
    const int64_t patches = std::min(kChunkPatches, B - b);
    const float* const here = tokens.data() + b * N * D_;
    std::vector<FoldBuffer> buffers((patches + kFoldLanes - 1) / kFoldLanes, FoldBuffer(N, K_));
    load_scores(here, patches, buffers, scratch);
    attend(here, patches, present.data(), buffers, shares + b * N, pooled + b * D_);
    if (withheld == nullptr) continue;
    std::vector<float> part(patches * (N + D_));  // shares and pooled without one teacher
    for (int64_t i = 0; i < N; ++i) {
      if (!present[i]) continue;
      present[i] = 0;
      attend(here, patches, present.data(), buffers, part.data(), part.data() + patches * N);
      present[i] = 1;
      classify(part.data() + patches * N, patches, withheld + (i * B + b) * C_, scratch);
    }
  }
  classify(pooled, B, logits, scratch);
  if (!vote_weight_.empty()) vote(tokens.data(), B, present, logits, scratch);
  for (int64_t i = 0; withheld != nullptr && i < N; ++i) {
    float* const without = withheld + i * B * C_;
    if (!present[i]) {
      std::copy_n(logits, B * C_, without);
    } else if (!vote_weight_.empty()) {
      present[i] = 0;
      vote(tokens.data(), B, present, without, scratch);
      present[i] = 1;
    }
  }
}

}  // namespace shazam
