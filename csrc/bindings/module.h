#pragma once

#include <pybind11/pybind11.h>

namespace shazam {

void bind_bare_stack(pybind11::module_& module);  // bare_stack.cpp
void bind_store(pybind11::module_& module);       // store.cpp
void bind_student(pybind11::module_& module);     // student.cpp
void bind_training(pybind11::module_& module);    // training.cpp

}  // namespace shazam
