#include <cmath>
#include <utility>

#include "student/distillation.h"
#include "student/folded_scores.h"
#include "student/row_kernels.h"
#include "student/token_attention.h"
#include "tests/check.h"
#include "tests/values.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

constexpr int64_t kWidths[] = {1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 100};

Values poisoned(int64_t count) { return Values(count, kPoison); }

/// Teacher i of patch b is absent where (b + i) % 3 == 0, but for the first.
std::vector<uint8_t> some_present(int64_t B, int64_t N) {
  std::vector<uint8_t> present(B * N, 1);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 1; i < N; ++i) present[b * N + i] = (b + i) % 3 != 0;
  }
  return present;
}

bool close(double found, double expected, double size) {
  return std::abs(found - expected) <= 1e-6 * (size + std::abs(expected));
}

bool all_close(const Values& found, const Values& expected, double size) {
  bool equal = found.size() == expected.size();
  for (size_t i = 0; equal && i < found.size(); ++i) equal = close(found[i], expected[i], size);
  return equal;
}

bool all_finite(const Values& values) {
  for (float value : values) {
    if (!std::isfinite(value)) return false;
  }
  return true;
}

double dot(const float* x, const float* y, int64_t width) {
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += static_cast<double>(x[d]) * y[d];
  return sum;
}

/// Everything the operations write, computed by the given kernels.
struct Results {
  Values P, T, pooled, d_qkv, d_pooled_qkv;
  Values losses, d_fused, d_targets;
  Values folded, weights;

  template <typename Body>
  void each(const Results& other, const Body& body) const {
    const auto members = {&Results::P,       &Results::T,        &Results::pooled,
                          &Results::d_qkv,   &Results::d_pooled_qkv, &Results::losses,
                          &Results::d_fused, &Results::d_targets, &Results::folded,
                          &Results::weights};
    for (const auto member : members) body(this->*member, other.*member);
  }
};

struct Size {
  int64_t B, N, D;
  bool masked;
};

void attend(const Size& size, const uint8_t* present, int threads, const RowKernels& kernels,
            Results& results) {
  const auto [B, N, D, masked] = size;
  const Values qkv = normal(B * N * 3 * D, 1), d_T = normal(B * N * D, 2);
  Attention layer{B, N, D, qkv.data(), present, false, N * N};
  results.P = poisoned(B * N * N), results.T = poisoned(B * N * D);
  results.pooled = poisoned(B * D);
  results.d_qkv = poisoned(qkv.size()), results.d_pooled_qkv = poisoned(qkv.size());
  attention_forward(layer, results.P.data(), results.T.data(), threads, kernels);
  attention_backward(layer, results.P.data(), d_T.data(), {results.d_qkv.data()}, threads, kernels);
  layer.pooled = true;
  attention_forward(layer, results.P.data(), results.pooled.data(), threads, kernels);
  attention_backward(layer, results.P.data(), d_T.data(), {results.d_pooled_qkv.data()}, threads,
                     kernels);
}

Results compute(const Size& size, int threads, const RowKernels& kernels) {
  const auto [B, N, D, masked] = size;
  const auto mask = some_present(B, N);
  const uint8_t* present = masked ? mask.data() : nullptr;
  Results results;
  attend(size, present, threads, kernels, results);

  const Values fused = normal(B * D, 3), targets = normal(B * N * D, 4);
  results.losses = poisoned(4 * N + 2);
  results.d_fused = poisoned(B * D), results.d_targets = poisoned(B * N * D);
  float* losses = results.losses.data();
  for (Huber huber : {Huber::Elementwise, Huber::Norm}) {
    const Distillation task{B, N, D, fused.data(), targets.data(), present, 0.5, 1.0, huber};
    distillation(task, {losses, losses + 1, losses + 1 + N, results.d_fused.data(),
                        results.d_targets.data()}, threads, kernels);
    losses += 2 * N + 1;
  }

  constexpr int64_t K = 3;
  Values left = normal(B * N * K * D, 5);
  for (float& value : left) value /= static_cast<float>(D);
  results.folded = poisoned(B * D), results.weights = poisoned(B * N);
  folded_scores({B, N, D, K, left.data(), targets.data(), present}, results.folded.data(),
                results.weights.data(), threads, kernels);
  return results;
}

/// Calls check(kernels, n, m, width) with every instruction set and shapes of n and m rows.
template <typename Check>
void each_shape(const Check& check) {
  for (const RowKernels& kernels : row_kernels()) {
    for (int64_t width : kWidths) {
      for (int64_t n = 1; n <= 9; ++n) check(kernels, n, 10 - n, width);
    }
  }
}

}  // namespace

TEST(dots_of_any_shape_in_every_kernel) {
  each_shape([](const RowKernels& kernels, int64_t n, int64_t m, int64_t width) {
    const int64_t stride = width + 3;
    const Values left = normal(n * stride, 1), right = normal(m * stride, 2);
    Values out(n * m + 1, kPoison);
    kernels.dots({left.data(), n, stride}, {right.data(), m, stride}, width, 0.5f, out.data());
    bool equal = std::isnan(out.back());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < m; ++j) {
        const double expected = 0.5 * dot(&left[i * stride], &right[j * stride], width);
        equal = equal && close(out[i * m + j], expected, static_cast<double>(width));
      }
    }
    CHECK(equal);
  });
}

TEST(combinations_write_their_rows_and_nothing_else) {
  each_shape([](const RowKernels& kernels, int64_t n, int64_t m, int64_t width) {
    const int64_t stride = width + 2;
    const Values weights = normal(n * m, 1), rows = normal(m * width, 2);
    Values out = poisoned(n * stride);
    kernels.combine({weights.data(), 1, n}, {rows.data(), m, width}, width, {out.data(), n, stride});
    bool equal = true;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t d = 0; d < width; ++d) {
        double expected = 0;
        for (int64_t j = 0; j < m; ++j) expected += weights[j * n + i] * rows[j * width + d];
        equal = equal && close(out[i * stride + d], expected, 10.0);
      }
      for (int64_t d = width; d < stride; ++d) equal = equal && std::isnan(out[i * stride + d]);
    }
    CHECK(equal);
  });
}

TEST(kernels_agree_in_every_operation) {
  for (const Size& size : {Size{1, 1, 1, false}, Size{3, 4, 33, false}, Size{3, 4, 128, true},
                           Size{5, 7, 5, true}, Size{2, 32, 17, true}, Size{2, 32, 64, false}}) {
    const Results expected = compute(size, 1, row_kernels().back());
    for (const RowKernels& kernels : row_kernels()) {
      compute(size, 1, kernels).each(expected, [](const Values& found, const Values& portable) {
        CHECK(all_finite(found));
        CHECK(all_close(found, portable, 20.0));
      });
    }
  }
}

TEST(threads_change_no_bit_in_any_kernel) {
  const Size size{400, 5, 130, true};
  for (const RowKernels& kernels : row_kernels()) {
    const Results alone = compute(size, 1, kernels);
    for (int threads = 2; threads <= 4; ++threads) {
      compute(size, threads, kernels).each(alone, [](const Values& found, const Values& expected) {
        CHECK(found == expected);
      });
    }
  }
}

TEST(nan_reaches_the_losses_of_its_teacher_alone) {
  constexpr int64_t N = 3, D = 21;
  const Values fused = normal(D, 1);
  for (const RowKernels& kernels : row_kernels()) {
    for (Huber huber : {Huber::Norm, Huber::Elementwise}) {
      Values targets = normal(N * D, 2), losses = poisoned(2 * N + 1);
      targets[D + 19] = kPoison;
      const Distillation task{1, N, D, fused.data(), targets.data(), nullptr, 1.0, 0.1, huber};
      float* first = losses.data();
      distillation(task, {first, first + 1, first + 1 + N, nullptr, nullptr}, 1, kernels);
      for (int64_t i = 0; i < N; ++i) {
        CHECK(std::isnan(losses[1 + i]) == (i == 1));
        CHECK(std::isnan(losses[1 + N + i]) == (i == 1));
      }
      CHECK(std::isnan(losses[0]));
    }
  }
}

TEST(softmax_of_large_scores) {
  Values scores = {3e6f, 1e6f, -2e6f, -3e38f, 3e38f, 0.0f, 5.0f, 5.0f, 1e9f};
  const uint8_t present[] = {1, 1, 0};
  softmax_rows(scores.data(), 3, present);
  CHECK((scores == Values{1, 0, 0, 0, 1, 0, 0.5f, 0.5f, 0}));
}

TEST(attention_with_keys_by_themselves_gives_the_same_bits) {
  constexpr int64_t B = 3, N = 4, D = 33;
  const Values qkv = normal(B * N * 3 * D, 1), d_T = normal(B * N * D, 2);
  const auto mask = some_present(B, N);
  // Cuts rows of query, key and value into rows of query and value, and keys.
  const auto cut = [](const Values& whole) {
    std::pair<Values, Values> found;
    for (size_t at = 0; at < whole.size(); at += D) {
      Values& to = at / D % 3 == 1 ? found.second : found.first;
      to.insert(to.end(), whole.begin() + at, whole.begin() + at + D);
    }
    return found;
  };
  const auto [queries, keys] = cut(qkv);
  for (const bool pooled : {false, true}) {
    Values P = poisoned(B * N * N), T = poisoned(pooled ? B * D : B * N * D);
    Values other_P = P, other_T = T, d_qkv = poisoned(qkv.size());
    Values d_queries = poisoned(queries.size()), d_keys = poisoned(keys.size());
    const Attention layer{B, N, D, qkv.data(), mask.data(), pooled, N * N};
    const Attention other{B, N, D, queries.data(), mask.data(), pooled, N * N, keys.data()};
    attention_forward(layer, P.data(), T.data(), 1);
    attention_forward(other, other_P.data(), other_T.data(), 1);
    CHECK(P == other_P);
    CHECK(T == other_T);
    attention_backward(layer, P.data(), d_T.data(), {d_qkv.data()}, 1);
    attention_backward(other, P.data(), d_T.data(), {d_queries.data(), d_keys.data()}, 1);
    CHECK((cut(d_qkv) == std::pair<Values, Values>{d_queries, d_keys}));
  }
}

TEST(attention_of_a_hand_made_patch) {
  // D = 1, N = 2: scores q_i k_j, q = (0, ln 3), k = (1, 0), v = (8, 4).
  const float ln3 = std::log(3.0f);
  const Values qkv = {0, 1, 8, ln3, 0, 4};
  for (const RowKernels& kernels : row_kernels()) {
    Values P = poisoned(4), T = poisoned(2), d_qkv = poisoned(6);
    const Attention layer{1, 2, 1, qkv.data(), nullptr, false, 4};
    attention_forward(layer, P.data(), T.data(), 1, kernels);
    CHECK(all_close(P, {0.5f, 0.5f, 0.75f, 0.25f}, 1.0));
    CHECK(all_close(T, {6, 7}, 1.0));
    const Values d_T = {1, 0};  // d_P = (8, 4; 0, 0), d_S = (1, -1; 0, 0)
    attention_backward(layer, P.data(), d_T.data(), {d_qkv.data()}, 1, kernels);
    CHECK(all_close(d_qkv, {1, 0, 0.5f, 0, 0, 0.5f}, 1.0));
  }
}
