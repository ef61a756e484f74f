#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "store/dtype.h"
#include "store/feature_store.h"

/// Checks of the arrays that Python passes: what these functions return can be read or written at
/// all its stated sizes. All of them throw StoreError: Bounds for a wrong size, Dtype for a wrong
/// kind of values.
namespace shazam {

namespace py = pybind11;
using Shape = std::initializer_list<int64_t>;
using OptionalArray = std::optional<py::array>;
using Int64Array =
    py::array_t<int64_t, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

void require(bool passed, const std::string& name, const std::string& expected);

int checked_threads(int threads);

/// A contiguous copy, or the array itself, without the silent conversion of other dtypes.
Int64Array int64_array(const py::array& array, py::ssize_t dimensions, const char* name);

/// NumPy has no bfloat16: uint16 stands for its raw bits.
DType matrix_dtype(const py::dtype& dtype, const std::string& name);

/// Features that are read. The rows may be any distance apart.
Matrix feature_matrix(const py::array& features);

/// Throws Bounds unless all are rows of features that have `count` of them.
void check_rows(const Int64Array& rows, int64_t count);

/// An output of the store. The rows may be any distance apart.
Matrix output_matrix(py::array& array);

/// The values of a contiguous float32 array of this shape.
const float* input(const py::array& array, Shape shape, const char* name);
float* output(py::array& array, Shape shape, const char* name);
float* output(OptionalArray& array, Shape shape, const char* name);  // null for None

/// One byte per teacher, 0 where it is absent; null for None.
const uint8_t* mask(const OptionalArray& array, Shape shape);

void check_float32(const py::array& array, const char* name);
void check_contiguous(const py::array& array, const char* name);
void check_writable(const py::array& array, const char* name);

}  // namespace shazam
