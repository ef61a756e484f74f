#include "bindings/module.h"

#include <pybind11/pybind11.h>

#include <exception>

#include "store/store_error.h"

namespace py = pybind11;

namespace shazam {
namespace {

/// StoreError in Python: an Exception with the attribute `kind`.
void bind_error(py::module_& module) {
  static py::handle type;
  type = py::exception<StoreError>(module, "StoreError").release();
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const StoreError& error) {
      // Paths need not be UTF-8.
      const auto message =
          py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(error.what()));
      if (!message) throw py::error_already_set();
      const py::object instance = py::reinterpret_borrow<py::object>(type)(message);
      instance.attr("kind") = name(error.kind());
      PyErr_SetObject(type.ptr(), instance.ptr());
    }
  });
}

}  // namespace
}  // namespace shazam

PYBIND11_MODULE(_core, module) {
  module.doc() = "Rows of feature matrices from memory-mapped files, and the student's arithmetic.";
  shazam::bind_error(module);
  shazam::bind_bare_stack(module);
  shazam::bind_store(module);
  shazam::bind_student(module);
  shazam::bind_training(module);
}
