#include "training/bare_stack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/check.h"
#include "tests/values.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

using Doubles = std::vector<double>;

struct Inputs {
  int64_t B, N, D, K;
  Values tokens, qkv, d_fused;
  std::vector<uint8_t> present;  // empty: all

  Inputs(int64_t B, int64_t N, int64_t D, int64_t K, bool masked)
      : B(B),
        N(N),
        D(D),
        K(K),
        tokens(normal(B * N * D, 1)),
        qkv(normal(K * D * 3 * D, 2, 1.0f / std::sqrt(static_cast<float>(D)))),
        d_fused(normal(B * D, 3)) {
    if (!masked) return;
    present.assign(B * N, 1);
    for (int64_t i = 0; i + 1 < B * N; ++i) present[i] = i % N == N - 1 || i % 3 != 0;
    for (int64_t i = 0; i < B * N * D; ++i) tokens[i] *= present[i / D];
  }

  BareStack stack() const {
    return {B, N, D, K, tokens.data(), qkv.data(), present.empty() ? nullptr : present.data()};
  }
};

double dot(const double* x, const double* y, int64_t width) {
  double sum = 0.0;
  for (int64_t d = 0; d < width; ++d) sum += x[d] * y[d];
  return sum;
}

/// x [N, D] times columns [from, from + D) of a layer's maps.
Doubles mapped(const Inputs& in, const Doubles& x, const double* maps, int64_t from) {
  Doubles out(in.N * in.D, 0.0);
  for (int64_t i = 0; i < in.N; ++i) {
    for (int64_t k = 0; k < in.D; ++k) {
      for (int64_t d = 0; d < in.D; ++d) {
        out[i * in.D + d] += x[i * in.D + k] * maps[k * 3 * in.D + from + d];
      }
    }
  }
  return out;
}

/// P V of one patch.
Doubles attended(const Inputs& in, const Doubles& x, const double* maps, const uint8_t* present) {
  const Doubles q = mapped(in, x, maps, 0), k = mapped(in, x, maps, in.D);
  const Doubles v = mapped(in, x, maps, 2 * in.D);
  Doubles out(in.N * in.D, 0.0);
  for (int64_t i = 0; i < in.N; ++i) {
    Doubles row(in.N, 0.0);
    double sum = 0.0;
    for (int64_t j = 0; j < in.N; ++j) {
      if (present != nullptr && !present[j]) continue;
      row[j] = std::exp(dot(&q[i * in.D], &k[j * in.D], in.D) / std::sqrt(static_cast<double>(in.D)));
      sum += row[j];
    }
    for (int64_t j = 0; j < in.N; ++j) {
      for (int64_t d = 0; d < in.D; ++d) out[i * in.D + d] += row[j] / sum * v[j * in.D + d];
    }
  }
  return out;
}

/// <d_fused, fused> by the definition.
double objective(const Inputs& in, const Doubles& tokens, const Doubles& qkv) {
  double total = 0.0;
  for (int64_t b = 0; b < in.B; ++b) {
    const uint8_t* present = in.present.empty() ? nullptr : in.present.data() + b * in.N;
    Doubles x(tokens.begin() + b * in.N * in.D, tokens.begin() + (b + 1) * in.N * in.D);
    for (int64_t layer = 0; layer < in.K; ++layer) {
      x = attended(in, x, qkv.data() + layer * 3 * in.D * in.D, present);
    }
    const int64_t count = present == nullptr ? in.N : std::count(present, present + in.N, 1);
    for (int64_t i = 0; i < in.N; ++i) {
      if (present != nullptr && !present[i]) continue;
      for (int64_t d = 0; d < in.D; ++d) total += in.d_fused[b * in.D + d] * x[i * in.D + d] / count;
    }
  }
  return total;
}

struct Results {
  Values fused, attention, space, d_tokens, d_qkv;

  Results(const Inputs& in, int threads, const RowKernels& kernels)
      : fused(in.B * in.D, kPoison),
        attention(in.B * in.K * in.N * in.N, kPoison),
        space(bare_stack_space(in.stack(), true, kernels), kPoison),
        d_tokens(in.B * in.N * in.D, kPoison),
        d_qkv(in.K * in.D * 3 * in.D, kPoison) {
    const BareStack stack = in.stack();
    bare_stack_forward(stack, {fused.data(), attention.data()}, space.data(), true, threads, kernels);
    bare_stack_backward(stack, {attention.data(), in.d_fused.data(), d_tokens.data(), d_qkv.data()},
                        space.data(), threads, kernels);
  }

  bool equals(const Results& other) const {
    return same(fused, other.fused) && same(attention, other.attention) &&
           same(d_tokens, other.d_tokens) && same(d_qkv, other.d_qkv);
  }

  static bool same(const Values& a, const Values& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }
};

/// <gradient, direction>, and the values moved that way by `step`.
double along(const Values& gradient, const Values& direction) {
  double sum = 0.0;
  for (size_t i = 0; i < gradient.size(); ++i) sum += static_cast<double>(gradient[i]) * direction[i];
  return sum;
}

Doubles moved(const Values& from, const Values& direction, double step) {
  Doubles to(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = from[i] + step * direction[i];
  return to;
}

template <typename Check>
void each_case(const Check& check) {
  const int64_t shapes[][4] = {{1, 1, 5, 1},  {3, 1, 7, 3},   {7, 4, 33, 2},
                               {2, 5, 40, 3}, {40, 2, 16, 5}, {20, 3, 300, 1}};
  for (const auto& [B, N, D, K] : shapes) {
    for (const bool masked : {false, true}) check(Inputs(B, N, D, K, masked && N > 1));
  }
}

}  // namespace

TEST(the_bare_stack_and_its_gradients_in_every_kernel) {
  each_case([](const Inputs& in) {
    Values d_tokens = normal(in.tokens.size(), 4), d_qkv = normal(in.qkv.size(), 5, 0.1f);
    if (!in.present.empty()) {
      for (size_t i = 0; i < d_tokens.size(); ++i) d_tokens[i] *= in.present[i / in.D];
    }
    const double step = 1e-5;
    const double up = objective(in, moved(in.tokens, d_tokens, step), moved(in.qkv, d_qkv, step));
    const double down = objective(in, moved(in.tokens, d_tokens, -step), moved(in.qkv, d_qkv, -step));
    const double value = objective(in, moved(in.tokens, d_tokens, 0), moved(in.qkv, d_qkv, 0));
    for (const RowKernels& kernels : row_kernels()) {
      const Results found(in, 1, kernels);
      const double size = std::sqrt(static_cast<double>(in.B * in.D));
      CHECK(std::abs(along(found.fused, in.d_fused) - value) <= 1e-5 * size);
      const double slope = (up - down) / (2 * step);
      const double gradient = along(found.d_tokens, d_tokens) + along(found.d_qkv, d_qkv);
      CHECK(std::abs(gradient - slope) <= 1e-4 * (size + std::abs(slope)));
    }
  });
}

TEST(threads_change_no_bit_of_the_bare_stack) {
  each_case([](const Inputs& in) {
    const Results alone(in, 1, row_kernels().front());
    for (const int threads : {2, 3, 7}) {
      CHECK(alone.equals(Results(in, threads, row_kernels().front())));
    }
  });
}

TEST(a_bare_stack_without_a_backward_pass_is_the_same) {
  each_case([](const Inputs& in) {
    const BareStack stack = in.stack();
    const Results kept(in, 2, row_kernels().front());
    Values fused(in.B * in.D, kPoison), attention(kept.attention.size(), kPoison);
    Values space(bare_stack_space(stack, false), kPoison);
    bare_stack_forward(stack, {fused.data(), attention.data()}, space.data(), false, 2);
    CHECK(Results::same(fused, kept.fused));
    CHECK(Results::same(attention, kept.attention));
  });
}
