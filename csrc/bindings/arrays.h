#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "store/dtype.h"

namespace shazam {

void bind_student(pybind11::module_& module);  // student.cpp

/// NumPy has no bfloat16: uint16 stands for its raw bits. Throws Dtype for other types.
DType matrix_dtype(const pybind11::dtype& dtype, const std::string& name);

}  // namespace shazam
