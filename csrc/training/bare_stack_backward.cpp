#include <algorithm>
#include <vector>

#include "student/token_attention.h"
#include "training/bare_stack.h"
#include "training/bare_stack_values.h"
#include "training/stacked_products.h"

namespace shazam {
namespace {

/// Gradients of a layer's `value` and `keys` take the places of these once they have been used.
class BackwardShare : PatchShare {
 public:
  BackwardShare(const BareStack& stack, const RowKernels& kernels, int64_t first, int64_t count,
                const BareStackGradient& task, const BareStackValues& values)
      : PatchShare(stack, kernels, first, count), task_(task), values_(values) {}

  void run() const {
    const int64_t all = count_ * s_.N * s_.D;
    thread_local std::vector<float> buffer;
    buffer.resize(std::max<size_t>(buffer.size(), 3 * all));
    float* d_X = target(s_.K - 1, buffer.data());
    pooled_layer(d_X, buffer.data() + 2 * all);
    for (int64_t layer = s_.K - 2; layer >= 0; --layer) {
      const float* const d_next = d_X;
      d_X = target(layer, buffer.data());
      inner_layer(layer, d_next, d_X, buffer.data() + 2 * all);
    }
  }

 private:
  /// Where the gradient of a layer's X goes: null where nobody wants it.
  float* target(int64_t layer, float* buffer) const {
    if (layer > 0) return buffer + layer % 2 * count_ * s_.N * s_.D;
    return task_.d_tokens == nullptr ? nullptr : part(task_.d_tokens, 0, s_.N);
  }

  const float* input(int64_t layer) const {
    return layer == 0 ? part(s_.tokens, 0, s_.N) : part(values_.inputs, layer - 1, s_.N);
  }

  /// The transpose of a map of `values_.turned`.
  Panels turned(int64_t index) const {
    const int64_t panel = kernels_.panel;
    return {values_.turned + index * panel_values(s_.D, s_.D, panel), s_.D * panel, panel};
  }

  /// d_X [B, N, D] through the last layer, whose mean is one row per patch.
  void pooled_layer(float* d_X, float* spare) const {
    const int64_t N = s_.N, D = s_.D, layer = s_.K - 1;
    float* const d_pooled = spare;
    multiply(part(task_.d_fused, 0, 1), count_, turned(layer), d_pooled, false);
    for (int64_t b = 0; b < count_; ++b) {
      const float* const P = map(task_.attention, b, layer);
      float parts[kMaxTeachers], weights[kMaxTeachers], dots[kMaxTeachers];
      float dS[kMaxTeachers * kMaxTeachers];
      mean_parts(N, present(b), parts);
      pool_map(P, parts, N, weights);
      const ConstRows d = patch_rows<const float>(d_pooled, b, 1);
      kernels_.dots(d, patch_rows(input(layer), b, N), D, 1.0f, dots);
      for (int64_t i = 0; i < N; ++i) {
        for (int64_t j = 0; j < N; ++j) dS[i * N + j] = parts[i] * dots[j];
      }
      score_gradient(layer, b, P, dS, d_X);
      if (d_X == nullptr) continue;
      for (int64_t j = 0; j < N; ++j) kernels_.add(patch_rows(d_X, b, N)[j], weights[j], d[0], D);
    }
    keys_gradient(layer, d_X, spare);
  }

  void inner_layer(int64_t layer, const float* d_next, float* d_X, float* spare) const {
    const int64_t N = s_.N, D = s_.D;
    float* const value = part(values_.value, layer, N);
    for (int64_t b = 0; b < count_; ++b) {
      const float* const P = map(task_.attention, b, layer);
      const ConstRows d = patch_rows(d_next, b, N);
      float dS[kMaxTeachers * kMaxTeachers];
      kernels_.dots(d, patch_rows<const float>(value, b, N), D, 1.0f, dS);
      kernels_.combine({P, 1, N}, d, D, patch_rows(value, b, N));
      score_gradient(layer, b, P, dS, d_X);
    }
    if (d_X == nullptr) return;
    multiply(value, count_ * N, turned(layer), d_X, true);
    keys_gradient(layer, d_X, spare);
  }

  /// From dP in `dS`: writes to d_X what the scores' left side x_i contributes, and d_keys.
  void score_gradient(int64_t layer, int64_t b, const float* P, float* dS, float* d_X) const {
    const int64_t N = s_.N, D = s_.D;
    const MutableRows keys = patch_rows(part(values_.keys, layer, N - 1), b, N - 1);
    softmax_gradient(P, N, scale(), dS);
    if (d_X != nullptr) {
      kernels_.combine({dS + 1, N, 1}, {keys.data, N - 1, D}, D, patch_rows(d_X, b, N));
    }
    kernels_.combine({dS + 1, 1, N}, patch_rows(input(layer), b, N), D, keys);
  }

  /// Adds what the keys contribute to d_X.
  void keys_gradient(int64_t layer, float* d_X, float* d_apart) const {
    if (d_X == nullptr) return;
    const int64_t N = s_.N, D = s_.D;
    multiply(part(values_.keys, layer, N - 1), count_ * (N - 1), turned(s_.K + layer), d_apart,
             false);
    for (int64_t b = 0; b < count_; ++b) {
      const MutableRows to = patch_rows(d_X, b, N);
      for (int64_t j = 1; j < N; ++j) {
        const float* const d = d_apart + (b * (N - 1) + j - 1) * D;
        kernels_.add(to[j], 1.0f, d, D);
        kernels_.add(to[0], -1.0f, d, D);
      }
    }
  }

  const BareStackGradient& task_;
  const BareStackValues& values_;
};

void turn_maps(const BareStack& s, const BareStackValues& values, int threads, int64_t panel) {
  const int64_t D = s.D, square = D * D, size = panel_values(D, D, panel);
  run_tasks(2 * s.K, threads, [&](int64_t index) {
    float* const to = values.turned + index * size;
    if (index < s.K) {
      transpose_into_panels(s.qkv + index * 3 * square + 2 * D, D, D, 3 * D, panel, to);
    } else {
      transpose_into_panels(values.maps + (index - s.K) * square, D, D, D, panel, to);
    }
  });
}

/// x^T d of S layers, x and d [depth, D] each, into matrices `out`.
StackedProduct weight_gradient(int64_t S, int64_t depth, int64_t D, const float* x, const float* d,
                               const MatrixStack<float>& out) {
  StackedProduct task{};
  task.S = S, task.rows = task.columns = D, task.depth = depth;
  task.left = {x, depth * D, D}, task.right = {d, depth * D, D};
  task.left_transposed = true;
  task.out = out;
  return task;
}

/// Gradients of the value maps, of the products Wk Wq^T, and from those of the query and key maps.
void map_gradients(const BareStack& s, const BareStackGradient& task, const BareStackValues& values,
                   int threads, const RowKernels& kernels) {
  const int64_t D = s.D, square = D * D, rows = s.B * s.N, others = s.B * (s.N - 1);
  const auto part_of = [&](int64_t layer, int64_t part) {
    return MatrixStack<float>{task.d_qkv + layer * 3 * square + part * D, 3 * square, 3 * D};
  };
  std::vector<StackedProduct> products;
  if (s.K > 1) products.push_back(weight_gradient(1, rows, D, s.tokens, values.value, part_of(0, 2)));
  if (s.K > 2) {
    products.push_back(
        weight_gradient(s.K - 2, rows, D, values.inputs, values.value + rows * D, part_of(1, 2)));
  }
  const MatrixStack<float> d_maps{values.maps, square, D};
  if (others > 0) {
    products.push_back(weight_gradient(s.K, others, D, values.apart, values.keys, d_maps));
  }
  products.push_back(weight_gradient(1, s.B, D, values.pooled, task.d_fused, part_of(s.K - 1, 2)));
  stacked_products(products, threads, kernels);
  if (others == 0) std::fill_n(values.maps, s.K * square, 0.0f);
  StackedProduct keys{};
  keys.S = s.K, keys.rows = keys.depth = keys.columns = D;
  keys.left = {values.maps, square, D};
  StackedProduct queries = keys;
  keys.right = {s.qkv, 3 * square, 3 * D}, keys.out = part_of(0, 1);
  queries.right = {s.qkv + D, 3 * square, 3 * D}, queries.out = part_of(0, 0);
  queries.left_transposed = true;
  stacked_products({keys, queries}, threads, kernels);
}

}  // namespace

void bare_stack_backward(const BareStack& stack, const BareStackGradient& task, float* space,
                         int threads, const RowKernels& kernels) {
  const BareStackValues values(stack, space);
  turn_maps(stack, values, threads, kernels.panel);
  for_shares(stack, threads, [&](int64_t first, int64_t count) {
    BackwardShare(stack, kernels, first, count, task, values).run();
  });
  if (task.d_qkv != nullptr) map_gradients(stack, task, values, threads, kernels);
}

}  // namespace shazam
