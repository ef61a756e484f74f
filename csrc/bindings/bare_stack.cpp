#include "training/bare_stack.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/unlocked.h"
#include "student/token_attention.h"

namespace shazam {
namespace {

BareStack stack_of(const py::array& tokens, const py::array& qkv, const OptionalArray& present) {
  require(tokens.ndim() == 3 && tokens.size() > 0, "tokens", "[B, N, D], none of them 0");
  require(qkv.ndim() == 3 && qkv.size() > 0, "qkv", "[K, D, 3D], none of them 0");
  BareStack stack{};
  stack.B = tokens.shape(0), stack.N = tokens.shape(1), stack.D = tokens.shape(2);
  stack.K = qkv.shape(0);
  require(stack.N <= kMaxTeachers, "tokens", "at most " + std::to_string(kMaxTeachers) + " teachers");
  stack.tokens = input(tokens, {stack.B, stack.N, stack.D}, "tokens");
  stack.qkv = input(qkv, {stack.K, stack.D, 3 * stack.D}, "qkv");
  stack.present = mask(present, {stack.B, stack.N});
  return stack;
}

int64_t space_of(const py::array& tokens, const py::array& qkv, bool kept) {
  return bare_stack_space(stack_of(tokens, qkv, std::nullopt), kept);
}

void forward(const py::array& tokens, const py::array& qkv, const OptionalArray& present,
             py::array fused, py::array attention, py::array space, bool kept, int threads) {
  const BareStack stack = stack_of(tokens, qkv, present);
  const int64_t B = stack.B, N = stack.N, D = stack.D, K = stack.K;
  const BareStackResult result{output(fused, {B, D}, "fused"),
                               output(attention, {B, K, N, N}, "attention")};
  float* const values = output(space, {bare_stack_space(stack, kept)}, "space");
  checked_threads(threads);
  const Unlocked unlocked;
  bare_stack_forward(stack, result, values, kept, threads);
}

void backward(const py::array& tokens, const py::array& qkv, const OptionalArray& present,
              const py::array& attention, const py::array& d_fused, py::array space,
              OptionalArray d_tokens, OptionalArray d_qkv, int threads) {
  const BareStack stack = stack_of(tokens, qkv, present);
  const int64_t B = stack.B, N = stack.N, D = stack.D, K = stack.K;
  const BareStackGradient task{input(attention, {B, K, N, N}, "attention"),
                               input(d_fused, {B, D}, "d_fused"),
                               output(d_tokens, {B, N, D}, "d_tokens"),
                               output(d_qkv, {K, D, 3 * D}, "d_qkv")};
  float* const values = output(space, {bare_stack_space(stack, true)}, "space");
  checked_threads(threads);
  const Unlocked unlocked;
  bare_stack_backward(stack, task, values, threads);
}

}  // namespace

void bind_bare_stack(py::module_& module) {
  using py::arg;
  module.def("bare_stack_space", &space_of, arg("tokens"), arg("qkv"), arg("kept"));
  module.def("bare_stack_forward", &forward, arg("tokens"), arg("qkv"), arg("present").none(true),
             arg("fused"), arg("attention"), arg("space"), arg("kept"), arg("threads") = 1);
  module.def("bare_stack_backward", &backward, arg("tokens"), arg("qkv"), arg("present").none(true),
             arg("attention"), arg("d_fused"), arg("space"), arg("d_tokens").none(true),
             arg("d_qkv").none(true), arg("threads") = 1);
}

}  // namespace shazam
