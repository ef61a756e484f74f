#include <cmath>
#include <cstring>
#include <vector>

#include "tests/check.h"
#include "tests/values.h"
#include "training/projection.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

/// A table of R rows of which every third teacher of a patch is missing, and holds NaN there.
struct Case {
  std::vector<int64_t> dims, rows;
  int64_t D, R, width = 0, N;
  Values features, mean, scale, weight, bias, columns, tokens;
  std::vector<uint8_t> present;

  Case(std::vector<int64_t> given, int64_t D, int64_t R, int64_t B)
      : dims(std::move(given)), D(D), R(R), N(dims.size()) {
    for (int64_t dim : dims) width += dim;
    for (int64_t b = 0; b < B; ++b) rows.push_back(b * 7 % R);
    features = normal(R * width, 1), mean = normal(width, 2), scale = normal(width, 3);
    for (float& value : scale) value = 0.5f + std::abs(value);
    weight = normal(width * D, 4), bias = normal(N * D, 5);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < N; ++i) present.push_back((b + i) % 3 != 1);
    }
    columns.assign(B * width, kPoison), tokens.assign(B * N * D + 1, kPoison);
  }

  int64_t B() const { return static_cast<int64_t>(rows.size()); }

  void run(int threads, const RowKernels& kernels) {
    const Matrix table{reinterpret_cast<std::byte*>(features.data()), R, width,
                       width * static_cast<int64_t>(sizeof(float)), DType::Float32};
    project({table, rows.data(), B(), dims, D, mean.data(), scale.data(), present.data(),
             weight.data(), bias.data(), columns.data(), tokens.data()},
            threads, kernels);
  }

  double standardised(int64_t b, int64_t i, int64_t k) const {
    if (!present[b * N + i]) return 0.0;
    return (static_cast<double>(features[rows[b] * width + k]) - mean[k]) / scale[k];
  }

  bool right() const {
    for (int64_t b = 0; b < B(); ++b) {
      int64_t first = 0;
      for (int64_t i = 0; i < N; first += dims[i], ++i) {
        for (int64_t d = 0; d < D; ++d) {
          double sum = bias[i * D + d];
          for (int64_t k = first; k < first + dims[i]; ++k) {
            const double x = standardised(b, i, k);
            if (std::abs(columns[b * width + k] - x) > 1e-5) return false;
            sum += x * weight[k * D + d];
          }
          if (!(std::abs(tokens[(b * N + i) * D + d] - sum) < 1e-4 * dims[i])) return false;
        }
      }
    }
    return std::isnan(tokens.back());
  }
};

}  // namespace

TEST(projections_of_chosen_rows_in_every_kernel_and_number_of_threads) {
  for (const RowKernels& kernels : row_kernels()) {
    for (const int64_t B : {1, 37, 300}) {
      Case alone({3, 300, 16}, 33, 40, B), shared = alone;
      alone.features[alone.rows[0] * alone.width + 5] = kPoison;  // of a missing teacher
      for (auto* at : {&alone, &shared}) at->features[at->width * at->rows[0] + 5] = kPoison;
      for (int64_t b = 0; b < B; ++b) {
        if (alone.rows[b] == alone.rows[0]) alone.present[b * 3 + 1] = shared.present[b * 3 + 1] = 0;
      }
      alone.run(1, kernels), shared.run(3, kernels);
      CHECK(alone.right());
      CHECK(std::memcmp(alone.tokens.data(), shared.tokens.data(), alone.tokens.size() * 4) == 0);
    }
  }
}

TEST(float16_tables_in_order_are_widened) {
  Case model({4, 3}, 5, 6, 6);
  std::vector<uint16_t> halves;
  for (float& value : model.features) {
    const auto step = static_cast<int>(&value - model.features.data()) % 8;
    value = 1.0f + static_cast<float>(step) / 8, halves.push_back(0x3c00 + 128 * step);
  }
  for (int64_t b = 0; b < 6; ++b) model.rows[b] = b;
  const Matrix table{reinterpret_cast<std::byte*>(halves.data()), 6, 7, 14, DType::Float16};
  project({table, nullptr, 6, model.dims, 5, model.mean.data(), model.scale.data(),
           model.present.data(), model.weight.data(), model.bias.data(), model.columns.data(),
           model.tokens.data()}, 1);
  CHECK(model.right());
}
