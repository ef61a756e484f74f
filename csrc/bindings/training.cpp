#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/unlocked.h"
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
  stacked_product(task, threads);
}

}  // namespace

void bind_training(py::module_& module) {
  using py::arg;
  module.def("stacked_product", &multiply, arg("left"), arg("right"), arg("bias").none(true),
             arg("out"), arg("left_transposed") = false, arg("right_transposed") = false,
             arg("threads") = 1);
}

}  // namespace shazam
