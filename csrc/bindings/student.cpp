#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/unlocked.h"
#include "store/store_error.h"
#include "student/distillation.h"
#include "student/folded_scores.h"
#include "student/folded_student.h"
#include "student/token_attention.h"

namespace shazam {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 24;  // of tokens, so that no product overflows

/// On these MKL falls back to AVX2.
bool amd_with_avx512() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

void check_teachers(int64_t N) {
  require(N >= 1 && N <= kMaxTeachers, "teachers", "from 1 to " + std::to_string(kMaxTeachers));
}

void check_width(int64_t D, const char* name) {
  require(D >= 1 && D <= kMaxWidth, name, "a width from 1 to " + std::to_string(kMaxWidth));
}

/// `attention` [B, N, N] may be a slice over layers of a larger array, with the values of a patch
/// side by side.
void check_map(const py::array& attention) {
  check_float32(attention, "attention");
  require(attention.ndim() == 3 && attention.shape(1) == attention.shape(2), "attention",
          "[B, N, N]");
  const int64_t B = attention.shape(0), N = attention.shape(1);
  check_teachers(N);
  constexpr py::ssize_t size = sizeof(float);
  // NumPy may give an axis of length 1, and all axes of an empty array, any stride.
  const bool rows = B == 0 || N == 1 ||
                    (attention.strides(2) == size && attention.strides(1) == size * N);
  if (!rows || attention.strides(0) % size != 0) {
    throw StoreError(ErrorKind::Dtype, "attention: the values of a patch must be contiguous");
  }
}

/// `tokens` is [B, N, D], or [B, D] for the pooled last layer.
Attention layer_of(const py::array& qkv, const py::array& attention, const OptionalArray& present,
                   const py::array& tokens, const OptionalArray& keys) {
  check_map(attention);
  require(tokens.ndim() == 2 || tokens.ndim() == 3, "tokens", "[B, N, D] or [B, D]");
  Attention layer{};
  layer.B = attention.shape(0);
  layer.N = attention.shape(1);
  layer.D = tokens.shape(tokens.ndim() - 1);
  check_width(layer.D, "tokens");
  layer.pooled = tokens.ndim() == 2;
  layer.qkv = input(qkv, {layer.B * layer.N, (keys ? 2 : 3) * layer.D}, "qkv");
  layer.keys = keys ? input(*keys, {layer.B, layer.N, layer.D}, "keys") : nullptr;
  layer.present = mask(present, {layer.B, layer.N});
  layer.map_stride = attention.strides(0) / static_cast<int64_t>(sizeof(float));
  return layer;
}

const float* input_tokens(const py::array& array, const Attention& layer, const char* name) {
  if (layer.pooled) return input(array, {layer.B, layer.D}, name);
  return input(array, {layer.B, layer.N, layer.D}, name);
}

void forward(const py::array& qkv, const OptionalArray& present, py::array attention,
             py::array out, int threads, const OptionalArray& keys) {
  const Attention layer = layer_of(qkv, attention, present, out, keys);
  input_tokens(out, layer, "out");
  check_writable(attention, "attention");
  check_writable(out, "out");
  auto* P = static_cast<float*>(attention.mutable_data());
  auto* T = static_cast<float*>(out.mutable_data());
  checked_threads(threads);
  const Unlocked unlocked;
  attention_forward(layer, P, T, threads);
}

void backward(const py::array& qkv, const OptionalArray& present, const py::array& attention,
              const py::array& d_out, py::array d_qkv, int threads, const OptionalArray& keys,
              OptionalArray d_keys) {
  const Attention layer = layer_of(qkv, attention, present, d_out, keys);
  const float* d_T = input_tokens(d_out, layer, "d_out");
  require(!keys == !d_keys, "d_keys", "given exactly with keys");
  const AttentionGradient gradient{
      output(d_qkv, {layer.B * layer.N, (keys ? 2 : 3) * layer.D}, "d_qkv"),
      output(d_keys, {layer.B, layer.N, layer.D}, "d_keys")};
  const auto* P = static_cast<const float*>(attention.data());
  checked_threads(threads);
  const Unlocked unlocked;
  attention_backward(layer, P, d_T, gradient, threads);
}

void distil(const py::array& fused, const py::array& targets, const OptionalArray& present,
            double lam, double delta, bool elementwise, py::array total, py::array cosine,
            py::array huber, OptionalArray d_fused, OptionalArray d_targets, int threads) {
  require(targets.ndim() == 3, "targets", "[B, N, D]");
  require(d_fused || !d_targets, "d_targets", "d_fused beside it");
  const int64_t B = targets.shape(0), N = targets.shape(1), D = targets.shape(2);
  check_teachers(N);
  check_width(D, "targets");
  Distillation task{};
  task.B = B, task.N = N, task.D = D;
  task.fused = input(fused, {B, D}, "fused");
  task.targets = input(targets, {B, N, D}, "targets");
  task.present = mask(present, {B, N});
  task.lam = lam, task.delta = delta;
  task.huber = elementwise ? Huber::Elementwise : Huber::Norm;
  const DistillationResult result{output(total, {}, "total"), output(cosine, {N}, "cosine"),
                                  output(huber, {N}, "huber"), output(d_fused, {B, D}, "d_fused"),
                                  output(d_targets, {B, N, D}, "d_targets")};
  checked_threads(threads);
  const Unlocked unlocked;
  distillation(task, result, threads);
}

void fold(const py::array& left, const py::array& tokens, const OptionalArray& present,
          py::array pooled, py::array shares, int threads) {
  require(tokens.ndim() == 3, "tokens", "[B, N, D]");
  require(left.ndim() == 3, "left", "[B, N * K, D]");
  FoldedScores task{};
  task.B = tokens.shape(0), task.N = tokens.shape(1), task.D = tokens.shape(2);
  check_teachers(task.N);
  task.K = left.shape(1) / task.N;
  check_width(task.D, "tokens");
  require(task.K >= 1 && task.K <= kMaxWidth, "left", "at least one layer");
  task.left = input(left, {task.B, task.N * task.K, task.D}, "left");
  task.tokens = input(tokens, {task.B, task.N, task.D}, "tokens");
  task.present = mask(present, {task.B, task.N});
  float* pooled_out = output(pooled, {task.B, task.D}, "pooled");
  float* shares_out = output(shares, {task.B, task.N}, "shares");
  checked_threads(threads);
  const Unlocked unlocked;
  folded_scores(task, pooled_out, shares_out, threads);
}

/// The sizes of a folded student, as its tensors have them.
FoldedTensors sizes_of(std::vector<int64_t> dims, const py::array& score_maps,
                       const py::array& head_weight_2) {
  FoldedTensors tensors{};
  check_teachers(static_cast<int64_t>(dims.size()));
  for (int64_t dim : dims) check_width(dim, "dims");
  tensors.dims = std::move(dims);
  require(head_weight_2.ndim() == 2, "head_weight_2", "[D, C]");
  tensors.D = head_weight_2.shape(0), tensors.C = head_weight_2.shape(1);
  check_width(tensors.D, "head_weight_2");
  check_width(tensors.C, "head_weight_2");
  require(score_maps.ndim() == 2 && score_maps.shape(1) >= tensors.D, "score_maps", "[D, K * D]");
  tensors.K = score_maps.shape(1) / tensors.D;
  return tensors;
}

std::unique_ptr<FoldedStudent> make_student(std::vector<int64_t> dims, const py::array& weight,
                                            const py::array& bias, const py::array& score_maps,
                                            const py::array& head_weight_1,
                                            const py::array& head_bias_1,
                                            const py::array& head_weight_2,
                                            const py::array& head_bias_2,
                                            const OptionalArray& shift,
                                            const OptionalArray& vote_weight,
                                            const OptionalArray& vote_bias) {
  FoldedTensors tensors = sizes_of(std::move(dims), score_maps, head_weight_2);
  const int64_t N = static_cast<int64_t>(tensors.dims.size()), D = tensors.D;
  const int64_t width = std::accumulate(tensors.dims.begin(), tensors.dims.end(), int64_t{0});
  tensors.weight = input(weight, {width, D}, "weight");
  tensors.bias = input(bias, {N, D}, "bias");
  tensors.score_maps = input(score_maps, {D, tensors.K * D}, "score_maps");
  tensors.head_weight_1 = input(head_weight_1, {D, D}, "head_weight_1");
  tensors.head_bias_1 = input(head_bias_1, {D}, "head_bias_1");
  tensors.head_weight_2 = input(head_weight_2, {D, tensors.C}, "head_weight_2");
  tensors.head_bias_2 = input(head_bias_2, {tensors.C}, "head_bias_2");
  tensors.shift = shift ? input(*shift, {width}, "shift") : nullptr;
  require(!vote_weight == !vote_bias, "vote_bias", "given exactly with vote_weight");
  if (vote_weight) {
    tensors.vote_weight = input(*vote_weight, {N, D, tensors.C}, "vote_weight");
    tensors.vote_bias = input(*vote_bias, {N, tensors.C}, "vote_bias");
  }
  return std::make_unique<FoldedStudent>(tensors);
}

void check_starts(const FoldedStudent& student, const std::vector<int64_t>& starts,
                  int64_t columns) {
  require(static_cast<int64_t>(starts.size()) == student.teachers(), "starts",
          "one for every teacher");
  bool any = false;
  for (int64_t i = 0; i < student.teachers(); ++i) {
    if (starts[i] < 0) continue;  // absent
    require(starts[i] <= columns - student.dims()[i], "starts", "columns of the features");
    any = true;
  }
  require(any, "starts", "at least one teacher that is there");
}

void run_student(const FoldedStudent& student, const py::array& features,
                 const std::vector<int64_t>& starts, py::array logits, py::array shares,
                 py::array pooled, OptionalArray withheld) {
  require(features.ndim() == 2, "features", "[B, columns]");
  const int64_t B = features.shape(0);
  check_starts(student, starts, features.shape(1));
  const DType dtype = matrix_dtype(features.dtype(), "features");
  check_contiguous(features, "features");
  const Matrix matrix{const_cast<std::byte*>(static_cast<const std::byte*>(features.data())), B,
                      features.shape(1), features.strides(0), dtype};
  float* const logits_out = output(logits, {B, student.classes()}, "logits");
  float* const shares_out = output(shares, {B, student.teachers()}, "shares");
  float* const pooled_out = output(pooled, {B, student.width()}, "pooled");
  const auto there = std::count_if(starts.begin(), starts.end(), [](int64_t s) { return s >= 0; });
  require(!withheld || there > 1, "withheld", "at least two teachers that are there");
  float* const withheld_out =
      output(withheld, {student.teachers(), B, student.classes()}, "withheld");
  const Unlocked unlocked;
  student.forward(matrix, starts, logits_out, shares_out, pooled_out, withheld_out);
}

}  // namespace

void bind_student(py::module_& module) {
  using py::arg;
  module.attr("AMD_AVX512") = amd_with_avx512();
  module.attr("MAX_TEACHERS") = kMaxTeachers;
  py::class_<FoldedStudent>(module, "FoldedStudent")
      .def(py::init(&make_student), arg("dims"), arg("weight"), arg("bias"), arg("score_maps"),
           arg("head_weight_1"), arg("head_bias_1"), arg("head_weight_2"), arg("head_bias_2"),
           arg("shift").none(true) = py::none(), arg("vote_weight").none(true) = py::none(),
           arg("vote_bias").none(true) = py::none())
      .def("forward", &run_student, arg("features"), arg("starts"), arg("logits"), arg("shares"),
           arg("pooled"), arg("withheld").none(true) = py::none());
  module.def("attention_forward", &forward, arg("qkv"), arg("present").none(true),
             arg("attention"), arg("out"), arg("threads") = 1, arg("keys").none(true) = py::none());
  module.def("attention_backward", &backward, arg("qkv"), arg("present").none(true),
             arg("attention"), arg("d_out"), arg("d_qkv"), arg("threads") = 1,
             arg("keys").none(true) = py::none(), arg("d_keys").none(true) = py::none());
  module.def("distillation", &distil, arg("fused"), arg("targets"), arg("present").none(true),
             arg("lam"), arg("delta"), arg("elementwise"), arg("total"), arg("cosine"),
             arg("huber"), arg("d_fused").none(true), arg("d_targets").none(true),
             arg("threads") = 1);
  module.def("folded_scores", &fold, arg("left"), arg("tokens"), arg("present").none(true),
             arg("pooled"), arg("shares"), arg("threads") = 1);
}

}  // namespace shazam
