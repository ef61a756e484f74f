#include <algorithm>
#include <cmath>
#include <vector>

#include "store/convert.h"
#include "student/folded_student.h"
#include "tests/check.h"
#include "tests/values.h"

using namespace shazam;
using namespace shazam::testing;

namespace {

struct Model {
  std::vector<int64_t> dims;
  int64_t D, K, C, columns = 0;
  Values weight, bias, maps, head_1, head_bias_1, head_2, head_bias_2, shift, votes, vote_biases;

  Model(std::vector<int64_t> given, int64_t D, int64_t K, int64_t C)
      : dims(std::move(given)), D(D), K(K), C(C) {
    for (int64_t dim : dims) columns += dim;
    const auto scale = 1.0f / std::sqrt(static_cast<float>(D));
    weight = normal(columns * D, 1, 0.1f), bias = normal(dims.size() * D, 2);
    maps = normal(D * K * D, 3, 0.3f * scale), head_1 = normal(D * D, 4, scale);
    head_bias_1 = normal(D, 5), head_2 = normal(D * C, 6);
    head_bias_2 = normal(C, 7);
  }

  FoldedTensors tensors() const {
    return {dims, D, K, C, weight.data(), bias.data(), maps.data(), head_1.data(),
            head_bias_1.data(), head_2.data(), head_bias_2.data(),
            shift.empty() ? nullptr : shift.data(), votes.empty() ? nullptr : votes.data(),
            votes.empty() ? nullptr : vote_biases.data()};
  }
};

/// Features side by side.
template <typename T>
Matrix matrix_of(std::vector<T>& features, int64_t columns, DType dtype) {
  return {reinterpret_cast<std::byte*>(features.data()),
          static_cast<int64_t>(features.size()) / columns, columns,
          columns * static_cast<int64_t>(sizeof(T)), dtype};
}

/// Logits, weights and pooled, one after another.
Values infer(const Model& model, const Matrix& features, const RowKernels& kernels) {
  const int64_t B = features.rows;
  const auto N = static_cast<int64_t>(model.dims.size());
  std::vector<int64_t> starts(N, 0);
  for (int64_t i = 1; i < N; ++i) starts[i] = starts[i - 1] + model.dims[i - 1];
  if (N > 2) starts[1] = -1;
  Values out(B * (model.C + N + model.D) + 1, kPoison);
  float* const weights = out.data() + B * model.C;
  FoldedStudent(model.tensors(), kernels)
      .forward(features, starts, out.data(), weights, weights + B * N);
  CHECK(std::isnan(out.back()));
  out.pop_back();
  return out;
}

Values infer(const Model& model, Values& features, int64_t B, const RowKernels& kernels) {
  CHECK(static_cast<int64_t>(features.size()) == B * model.columns);
  return infer(model, matrix_of(features, model.columns, DType::Float32), kernels);
}

}  // namespace

TEST(folded_students_agree_in_every_kernel) {
  for (const Model& model : {Model({3}, 1, 1, 1), Model({5, 300, 7}, 31, 3, 5),
                             Model({256, 257}, 32, 2, 2), Model({40, 9, 8, 7}, 272, 2, 4)}) {
    for (int64_t B : {1, 12, 50}) {
      Values features = normal(B * model.columns, 8);
      const Values expected = infer(model, features, B, row_kernels().back());
      for (const RowKernels& kernels : row_kernels()) {
        const Values found = infer(model, features, B, kernels);
        bool equal = true;
        for (size_t i = 0; i < found.size(); ++i) {
          equal = equal && std::abs(found[i] - expected[i]) <= 1e-4f * (1 + std::abs(expected[i]));
        }
        CHECK(equal);
      }
    }
  }
}

TEST(weights_lie_on_the_simplex_and_absent_teachers_have_none) {
  const Model model({5, 30, 7}, 24, 4, 3);
  constexpr int64_t B = 20, N = 3;
  Values features = normal(B * model.columns, 8, 20.0f);  // scores of some hundreds
  for (const RowKernels& kernels : row_kernels()) {
    const Values out = infer(model, features, B, kernels);
    for (int64_t b = 0; b < B; ++b) {
      const float* const w = out.data() + B * model.C + b * N;
      CHECK(w[1] == 0.0f);
      CHECK(w[0] >= 0.0f && w[2] >= 0.0f && std::abs(w[0] + w[2] - 1.0f) < 1e-5f);
    }
  }
}

TEST(logits_without_a_teacher_are_those_with_it_absent) {
  Model model({5, 30, 7}, 24, 4, 3);
  constexpr int64_t B = 50, N = 3, C = 3, D = 24;
  model.votes = normal(N * D * C, 9), model.vote_biases = normal(N * C, 10);
  Values features = normal(B * model.columns, 8);
  const Matrix matrix = matrix_of(features, model.columns, DType::Float32);
  for (const RowKernels& kernels : row_kernels()) {
    const FoldedStudent student(model.tensors(), kernels);
    Values logits(B * C), shares(B * N), pooled(B * D), withheld(N * B * C);
    student.forward(matrix, {0, 5, 35}, logits.data(), shares.data(), pooled.data(),
                    withheld.data());
    for (int64_t i = 0; i < N; ++i) {
      std::vector<int64_t> starts{0, 5, 35};
      starts[i] = -1;
      student.forward(matrix, starts, logits.data(), shares.data(), pooled.data());
      CHECK(std::equal(logits.begin(), logits.end(), withheld.begin() + i * B * C));
    }
  }
}

TEST(features_of_every_dtype_give_the_bits_of_the_same_features_in_float32) {
  Model model({300, 5, 257, 16}, 40, 2, 3);
  for (int64_t B : {1, 13, 53}) {
    std::vector<uint16_t> narrow(B * model.columns);
    for (size_t i = 0; i < narrow.size(); ++i) {  // between 2^-6 and 2^6 in float16, signs of both kinds
      narrow[i] = static_cast<uint16_t>(i * 40503 % 0x3000 + 0x2400 + (i % 3 == 0 ? 0x8000 : 0));
    }
    for (DType dtype : {DType::Float16, DType::BFloat16}) {
      Values wide(narrow.size());
      widen(dtype, narrow.data(), wide.data(), static_cast<int64_t>(wide.size()));
      for (const bool shifted : {false, true}) {
        model.shift = shifted ? normal(model.columns, 11) : Values{};
        for (const RowKernels& kernels : row_kernels()) {
          const Values expected = infer(model, wide, B, kernels);
          CHECK(infer(model, matrix_of(narrow, model.columns, dtype), kernels) == expected);
          CHECK(std::none_of(expected.begin(), expected.end(), [](float x) { return std::isnan(x); }));
        }
      }
    }
  }
}

TEST(rows_of_features_may_be_far_apart_or_in_reverse) {
  const Model model({300, 5, 257}, 40, 2, 3);
  constexpr int64_t B = 30;
  Values features = normal(B * model.columns, 8), reversed(features.size());
  for (int64_t b = 0; b < B; ++b) {
    std::copy_n(features.begin() + b * model.columns, model.columns,
                reversed.end() - (b + 1) * model.columns);
  }
  Matrix backwards = matrix_of(reversed, model.columns, DType::Float32);
  backwards.data = backwards.row(B - 1);
  backwards.stride = -backwards.stride;
  for (const RowKernels& kernels : row_kernels()) {
    CHECK(infer(model, backwards, kernels) == infer(model, features, B, kernels));
  }
}

/// Means that float32 holds exactly, so that features without them are exact too.
TEST(features_are_shifted_before_the_product) {
  for (const RowKernels& kernels : row_kernels()) {
    Model model({300, 257, 16}, 33, 2, 5);
    const int64_t B = 53;
    Values shifted(B * model.columns), features = shifted;
    for (int64_t i = 0; i < B * model.columns; ++i) shifted[i] = static_cast<float>(i * 37 % 64) / 16;
    const Values expected = infer(model, shifted, B, kernels);
    model.shift.resize(model.columns);
    for (int64_t k = 0; k < model.columns; ++k) model.shift[k] = static_cast<float>(1000 + k % 7);
    for (int64_t i = 0; i < B * model.columns; ++i) {
      features[i] = shifted[i] + model.shift[i % model.columns];
    }
    CHECK(infer(model, features, B, kernels) == expected);
  }
}

TEST(the_mean_of_the_teachers_own_logits_is_added) {
  for (const RowKernels& kernels : row_kernels()) {
    for (std::vector<int64_t> dims : {std::vector<int64_t>{9}, std::vector<int64_t>{40, 9, 8, 7}}) {
      Model model(dims, 33, 2, 5);
      const auto N = static_cast<int64_t>(dims.size());
      const int64_t B = 13;
      Values features = normal(B * model.columns, 8);
      const Values alone = infer(model, features, B, kernels);
      model.vote_biases = normal(N * 5, 10);
      model.votes = Values(N * 33 * 5, 0.0f);
      const Values found = infer(model, features, B, kernels);
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t c = 0; c < 5; ++c) {
          float mean = 0.0f;  // of the heads of the teachers that are there: all but the second
          for (int64_t i = 0; i < N; ++i) mean += N > 2 && i == 1 ? 0.0f : model.vote_biases[i * 5 + c];
          const float expected = alone[b * 5 + c] + mean / static_cast<float>(N);
          CHECK(std::abs(found[b * 5 + c] - expected) < 1e-5f);
        }
      }
      for (size_t i = B * 5; i < alone.size(); ++i) CHECK(found[i] == alone[i]);
    }
  }
}
