#include <cmath>
#include <random>
#include <vector>

#include "tests/check.h"
#include "tests/values.h"
#include "training/stacked_products.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

constexpr int64_t kGap = 3;  // values between two rows that belong to neither

struct Case {
  int64_t S, rows, depth, columns;
  bool left_transposed, right_transposed, shared, biased;
};

/// Matrices with gaps of NaN between their rows.
struct Matrices {
  int64_t rows, columns;
  Values values;

  Matrices(int64_t S, int64_t rows, int64_t columns, unsigned seed)
      : rows(rows), columns(columns), values(S * rows * (columns + kGap), kPoison) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw;
    for (int64_t row = 0; row < S * rows; ++row) {
      for (int64_t c = 0; c < columns; ++c) values[row * (columns + kGap) + c] = draw(random);
    }
  }

  MatrixStack<const float> stack(bool shared) const {
    return {values.data(), shared ? 0 : rows * (columns + kGap), columns + kGap};
  }
};

double value(const MatrixStack<const float>& stack, int64_t s, int64_t i, int64_t j,
             bool transposed) {
  return stack[s][transposed ? j * stack.stride + i : i * stack.stride + j];
}

StackedProduct task_of(const Case& at, const Matrices& left, const Matrices& right,
                       const Values& bias, Values& out) {
  StackedProduct task{};
  task.S = at.S, task.rows = at.rows, task.depth = at.depth, task.columns = at.columns;
  task.left = left.stack(at.shared), task.right = right.stack(false);
  task.left_transposed = at.left_transposed, task.right_transposed = at.right_transposed;
  task.bias = at.biased ? bias.data() : nullptr;
  const int64_t stride = at.columns + kGap;
  out.assign(at.S * at.rows * stride, kPoison);
  task.out = {out.data(), at.rows * stride, stride};
  return task;
}

bool right_everywhere(const StackedProduct& task, const Values& out) {
  for (int64_t s = 0; s < task.S; ++s) {
    for (int64_t i = 0; i < task.rows; ++i) {
      const float* const row = out.data() + s * task.out.step + i * task.out.stride;
      for (int64_t j = 0; j < task.columns; ++j) {
        double sum = task.bias == nullptr ? 0.0 : task.bias[s * task.columns + j];
        for (int64_t k = 0; k < task.depth; ++k) {
          sum += value(task.left, s, i, k, task.left_transposed) *
                 value(task.right, s, k, j, task.right_transposed);
        }
        if (!(std::abs(row[j] - sum) <= 1e-5 * std::sqrt(task.depth) * 10)) return false;
      }
      for (int64_t j = task.columns; j < task.out.stride; ++j) {
        if (!std::isnan(row[j])) return false;
      }
    }
  }
  return true;
}

template <typename Check>
void each_case(const Check& check) {
  const int64_t shapes[][3] = {{1, 1, 1},   {5, 3, 7},    {12, 16, 32}, {13, 257, 33},
                               {64, 64, 6}, {300, 5, 40}, {7, 600, 31}, {4, 4, 4}};
  for (const auto& [rows, depth, columns] : shapes) {
    for (int bits = 0; bits < 16; ++bits) {
      const Case at{3,          rows,       depth,      columns,
                    (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
      if (at.left_transposed && at.right_transposed) continue;
      const Matrices left(at.S, at.left_transposed ? depth : rows,
                          at.left_transposed ? rows : depth, 1);
      const Matrices right(at.S, at.right_transposed ? columns : depth,
                           at.right_transposed ? depth : columns, 2);
      const Values bias = Matrices(1, 1, at.S * columns, 3).values;
      Values out;
      check(task_of(at, left, right, bias, out), out);
    }
  }
}

}  // namespace

TEST(stacked_products_of_any_shape_in_every_kernel) {
  each_case([](const StackedProduct& task, Values& out) {
    for (const RowKernels& kernels : row_kernels()) {
      out.assign(out.size(), kPoison);
      stacked_products({task}, 1, kernels);
      CHECK(right_everywhere(task, out));
    }
  });
}

TEST(threads_change_no_bit_of_stacked_products) {
  each_case([](const StackedProduct& task, Values& out) {
    stacked_products({task}, 1);
    const Values alone = out;
    stacked_products({task}, 3);
    bool equal = true;
    for (size_t i = 0; i < out.size(); ++i) {
      equal = equal && (out[i] == alone[i] || (std::isnan(out[i]) && std::isnan(alone[i])));
    }
    CHECK(equal);
  });
}
