#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/unlocked.h"
#include "training/projection.h"
#include "training/stacked_products.h"

namespace shazam {
namespace {

/// Values from one index of an axis to the next; NumPy may give an axis of length 1 any stride.
int64_t step_of(const py::array& array, int axis, const char* name) {
  if (array.shape(axis) <= 1) return 0;
  const py::ssize_t bytes = array.strides(axis), size = sizeof(float);
  require(bytes >= 0 && bytes % size == 0, name, "axes in the order of the memory");
  return bytes / size;
}

/// [S, rows, columns] with the values of a row side by side.
MatrixStack<const float> stack_of(const py::array& array, const char* name) {
  check_float32(array, name);
  require(array.ndim() == 3 && array.size() > 0, name, "[S, rows, columns], none of them 0");
  if (array.shape(2) > 1 && array.strides(2) != sizeof(float)) {
    throw StoreError(ErrorKind::Dtype, std::string(name) + ": the values of a row must be contiguous");
  }
  return {static_cast<const float*>(array.data()), step_of(array, 0, name),
          step_of(array, 1, name)};
}

/// No two values may lie in the same place: they would be written twice.
MatrixStack<float> output_stack(py::array& array, int64_t S, int64_t rows, int64_t columns) {
  const MatrixStack<const float> found = stack_of(array, "out");
  check_writable(array, "out");
  require(array.shape(0) == S && array.shape(1) == rows && array.shape(2) == columns, "out",
          "a shape that fits the other arrays");
  require(rows == 1 || found.stride >= columns, "out", "rows that do not overlap");
  require(S == 1 || found.step >= (rows - 1) * found.stride + columns, "out",
          "matrices that do not overlap");
  return {static_cast<float*>(array.mutable_data()), found.step, found.stride};
}

void multiply(const py::array& left, const py::array& right, const OptionalArray& bias,
              py::array out, bool left_transposed, bool right_transposed, int threads) {
  StackedProduct task{};
  task.left = stack_of(left, "left");
  task.right = stack_of(right, "right");
  require(!left_transposed || !right_transposed, "left_transposed", "not both transposed");
  task.left_transposed = left_transposed, task.right_transposed = right_transposed;
  task.S = left.shape(0);
  task.rows = left.shape(left_transposed ? 2 : 1);
  task.depth = left.shape(left_transposed ? 1 : 2);
  task.columns = right.shape(right_transposed ? 1 : 2);
  require(right.shape(0) == task.S && right.shape(right_transposed ? 2 : 1) == task.depth, "right",
          "a shape that fits `left`");
  task.bias = bias ? input(*bias, {task.S, task.columns}, "bias") : nullptr;
  task.out = output_stack(out, task.S, task.rows, task.columns);
  checked_threads(threads);
  const Unlocked unlocked;
  stacked_products({task}, threads);
}

/// A matrix with the values of its rows or, then `transposed`, of its columns side by side.
MatrixStack<const float> matrix_of(const py::array& array, const char* name, bool& transposed) {
  check_float32(array, name);
  require(array.ndim() == 2 && array.size() > 0, name, "[rows, columns], none of them 0");
  transposed = array.shape(1) > 1 && array.strides(1) != sizeof(float);
  if (transposed && array.shape(0) > 1 && array.strides(0) != sizeof(float)) {
    throw StoreError(ErrorKind::Dtype,
                     std::string(name) + ": the values of rows or columns must be contiguous");
  }
  return {static_cast<const float*>(array.data()), 0, step_of(array, transposed ? 1 : 0, name)};
}

void multiply_matrices(const py::array& left, const py::array& right, const OptionalArray& bias,
                       py::array out, int threads) {
  StackedProduct task{};
  task.left = matrix_of(left, "left", task.left_transposed);
  task.right = matrix_of(right, "right", task.right_transposed);
  require(!task.left_transposed || !task.right_transposed, "left", "not both transposed");
  task.S = 1, task.rows = left.shape(0), task.depth = left.shape(1), task.columns = right.shape(1);
  require(right.shape(0) == task.depth, "right", "a shape that fits `left`");
  task.bias = bias ? input(*bias, {task.columns}, "bias") : nullptr;
  bool transposed = false;
  const MatrixStack<const float> to = matrix_of(out, "out", transposed);
  check_writable(out, "out");
  const bool fits = out.shape(0) == task.rows && out.shape(1) == task.columns;
  require(fits && !transposed, "out", "a shape that fits the other arrays");
  require(task.rows == 1 || to.stride >= task.columns, "out", "rows that do not overlap");
  task.out = {static_cast<float*>(out.mutable_data()), 0, to.stride};
  checked_threads(threads);
  const Unlocked unlocked;
  stacked_products({task}, threads);
}

void project_rows(const py::array& features, const OptionalArray& rows, std::vector<int64_t> dims,
                  const py::array& mean, const py::array& scale, const OptionalArray& present,
                  const py::array& weight, const py::array& bias, OptionalArray columns,
                  py::array tokens, int threads) {
  require(bias.ndim() == 2, "bias", "2 dimensions");
  Projection task{};
  task.features = feature_matrix(features);
  const int64_t width = task.features.columns, N = static_cast<int64_t>(dims.size());
  const bool fits = std::all_of(dims.begin(), dims.end(), [](int64_t dim) { return dim > 0; });
  require(fits && std::accumulate(dims.begin(), dims.end(), int64_t{0}) == width, "dims",
          "the columns of the features, at least 1 each");
  std::optional<Int64Array> chosen;
  if (rows) check_rows(chosen.emplace(int64_array(*rows, 1, "rows")), features.shape(0));
  task.rows = chosen ? chosen->data() : nullptr;
  task.B = chosen ? chosen->size() : features.shape(0);
  task.D = bias.shape(1), task.dims = std::move(dims);
  task.mean = input(mean, {width}, "mean"), task.scale = input(scale, {width}, "scale");
  task.present = mask(present, {task.B, N});
  task.weight = input(weight, {width, task.D}, "weight");
  task.bias = input(bias, {N, task.D}, "bias");
  task.columns = output(columns, {task.B, width}, "columns");
  task.tokens = output(tokens, {task.B, N, task.D}, "tokens");
  checked_threads(threads);
  const Unlocked unlocked;
  project(task, threads);
}

/// One product per teacher.
void project_gradient(const py::array& columns, const std::vector<int64_t>& dims,
                      const py::array& d_tokens, py::array d_weight, int threads) {
  require(d_tokens.ndim() == 3, "d_tokens", "[B, N, D]");
  const int64_t B = d_tokens.shape(0), N = d_tokens.shape(1), D = d_tokens.shape(2);
  const bool fits = std::all_of(dims.begin(), dims.end(), [](int64_t dim) { return dim > 0; });
  require(fits && static_cast<int64_t>(dims.size()) == N, "dims", "one per teacher, at least 1 each");
  const int64_t width = std::accumulate(dims.begin(), dims.end(), int64_t{0});
  const float* x = input(columns, {B, width}, "columns");
  const float* d = input(d_tokens, {B, N, D}, "d_tokens");
  float* out = output(d_weight, {width, D}, "d_weight");
  std::vector<StackedProduct> tasks;
  for (int64_t dim : dims) {
    StackedProduct task{};
    task.S = 1, task.rows = dim, task.depth = B, task.columns = D;
    task.left = {x, 0, width}, task.right = {d, 0, N * D}, task.out = {out, 0, D};
    task.left_transposed = true;
    tasks.push_back(task);
    x += dim, d += D, out += dim * D;
  }
  checked_threads(threads);
  const Unlocked unlocked;
  if (B == 0) {
    std::fill_n(out - width * D, width * D, 0.0f);
  } else {
    stacked_products(tasks, threads);
  }
}

}  // namespace

void bind_training(py::module_& module) {
  using py::arg;
  module.def("stacked_product", &multiply, arg("left"), arg("right"), arg("bias").none(true),
             arg("out"), arg("left_transposed") = false, arg("right_transposed") = false,
             arg("threads") = 1);
  module.def("project", &project_rows, arg("features"), arg("rows").none(true), arg("dims"),
             arg("mean"), arg("scale"), arg("present").none(true), arg("weight"), arg("bias"),
             arg("columns").none(true), arg("tokens"), arg("threads") = 1);
  module.def("project_gradient", &project_gradient, arg("columns"), arg("dims"), arg("d_tokens"),
             arg("d_weight"), arg("threads") = 1);
  module.def("product", &multiply_matrices, arg("left"), arg("right"), arg("bias").none(true),
             arg("out"), arg("threads") = 1);
}

}  // namespace shazam
