#include "bindings/arrays.h"

#include <algorithm>

namespace shazam {
namespace {

constexpr int kMaxThreads = 1024;

[[noreturn]] void fail(ErrorKind kind, const std::string& message) {
  throw StoreError(kind, message);
}

std::string text(const py::dtype& dtype) { return py::str(dtype).cast<std::string>(); }

void check_dtype(const py::array& array, const py::dtype& expected, const char* name) {
  if (array.dtype().equal(expected)) return;
  fail(ErrorKind::Dtype, std::string(name) + ": expected " + text(expected) + ", found " +
                             text(array.dtype()));
}

void check_shape(const py::array& array, Shape shape, const char* name) {
  bool equal = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t axis = 0; equal && axis < shape.size(); ++axis) {
    equal = array.shape(axis) == shape.begin()[axis];
  }
  require(equal, name, "a shape that fits the other arrays");
}

}  // namespace

void require(bool passed, const std::string& name, const std::string& expected) {
  if (!passed) fail(ErrorKind::Bounds, name + ": expected " + expected);
}

int checked_threads(int threads) {
  if (threads >= 1 && threads <= kMaxThreads) return threads;
  fail(ErrorKind::Bounds, "threads must be from 1 to " + std::to_string(kMaxThreads));
}

Int64Array int64_array(const py::array& array, py::ssize_t dimensions, const char* name) {
  check_dtype(array, py::dtype::of<int64_t>(), name);
  if (array.ndim() != dimensions) {
    fail(ErrorKind::Bounds, std::string(name) + ": expected " + std::to_string(dimensions) +
                                " dimensions, found " + std::to_string(array.ndim()));
  }
  auto values = Int64Array::ensure(array);
  if (!values) fail(ErrorKind::System, std::string(name) + ": no memory for a contiguous copy");
  return values;
}

DType matrix_dtype(const py::dtype& dtype, const std::string& name) {
  if (dtype.equal(py::dtype("float32"))) return DType::Float32;
  if (dtype.equal(py::dtype("float16"))) return DType::Float16;
  if (dtype.equal(py::dtype("uint16"))) return DType::BFloat16;
  fail(ErrorKind::Dtype,
       name + ": expected float32, float16 or uint16 (bfloat16), found " + text(dtype));
}

Matrix feature_matrix(const py::array& features) {
  require(features.ndim() == 2, "features", "2 dimensions");
  const DType dtype = matrix_dtype(features.dtype(), "features");
  // NumPy may give an axis of length 1, and all axes of an empty array, any stride.
  require(features.size() == 0 || features.shape(1) == 1 || features.strides(1) == item_size(dtype),
          "features", "contiguous rows");
  return {const_cast<std::byte*>(static_cast<const std::byte*>(features.data())),
          features.shape(0), features.shape(1), features.strides(0), dtype};
}

void check_rows(const Int64Array& rows, int64_t count) {
  const int64_t* const values = rows.data();
  const bool inside = std::all_of(values, values + rows.size(),
                                  [&](int64_t row) { return row >= 0 && row < count; });
  require(inside, "rows", "rows of the features");
}

Matrix output_matrix(py::array& array) {
  const DType dtype = matrix_dtype(array.dtype(), "out");
  check_writable(array, "out");
  if (array.ndim() != 2) {
    fail(ErrorKind::Bounds, "out: expected 2 dimensions, found " + std::to_string(array.ndim()));
  }
  // NumPy may give an axis of length 1, and all axes of an empty array, any stride.
  if (array.size() > 0 && array.shape(1) > 1 && array.strides(1) != item_size(dtype)) {
    fail(ErrorKind::Dtype, "out: the values of a row must be contiguous");
  }
  return {static_cast<std::byte*>(array.mutable_data()), array.shape(0), array.shape(1),
          array.strides(0), dtype};
}

const float* input(const py::array& array, Shape shape, const char* name) {
  check_float32(array, name);
  check_shape(array, shape, name);
  check_contiguous(array, name);
  return static_cast<const float*>(array.data());
}

float* output(py::array& array, Shape shape, const char* name) {
  input(array, shape, name);
  check_writable(array, name);
  return static_cast<float*>(array.mutable_data());
}

float* output(OptionalArray& array, Shape shape, const char* name) {
  return array ? output(*array, shape, name) : nullptr;
}

const uint8_t* mask(const OptionalArray& array, Shape shape) {
  if (!array) return nullptr;
  check_dtype(*array, py::dtype::of<bool>(), "present");
  check_shape(*array, shape, "present");
  check_contiguous(*array, "present");
  return static_cast<const uint8_t*>(array->data());
}

void check_float32(const py::array& array, const char* name) {
  check_dtype(array, py::dtype::of<float>(), name);
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
    fail(ErrorKind::Dtype, std::string(name) + ": expected values at multiples of 4 bytes");
  }
}

void check_contiguous(const py::array& array, const char* name) {
  if (!(array.flags() & py::array::c_style)) {
    fail(ErrorKind::Dtype, std::string(name) + ": expected contiguous values");
  }
}

void check_writable(const py::array& array, const char* name) {
  if (!array.writeable()) fail(ErrorKind::Dtype, std::string(name) + ": the array is read-only");
}

}  // namespace shazam
