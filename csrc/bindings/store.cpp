#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "store/feature_store.h"
#include "store/prefetcher.h"

namespace py = pybind11;

namespace shazam {

DType matrix_dtype(const py::dtype& dtype, const std::string& name) {
  if (dtype.equal(py::dtype("float32"))) return DType::Float32;
  if (dtype.equal(py::dtype("float16"))) return DType::Float16;
  if (dtype.equal(py::dtype("uint16"))) return DType::BFloat16;
  throw StoreError(ErrorKind::Dtype, name + ": expected float32, float16 or uint16 (bfloat16), found " +
                             py::str(dtype).cast<std::string>());
}

namespace {

constexpr int kMaxThreads = 1024;

[[noreturn]] void fail(ErrorKind kind, const std::string& message) {
  throw StoreError(kind, message);
}

/// The values of an int64 array of any layout, without the silent conversion of other dtypes.
py::array_t<int64_t, py::array::c_style> int64_array(const py::array& array, py::ssize_t dimensions,
                                                     const char* name) {
  if (!array.dtype().equal(py::dtype::of<int64_t>())) {
    fail(ErrorKind::Dtype, std::string(name) + ": expected int64, found " +
                               py::str(array.dtype()).cast<std::string>());
  }
  if (array.ndim() != dimensions) {
    fail(ErrorKind::Bounds, std::string(name) + ": expected " + std::to_string(dimensions) +
                                " dimensions, found " + std::to_string(array.ndim()));
  }
  return py::array_t<int64_t, py::array::c_style>::ensure(array);
}

std::vector<int64_t> to_vector(const py::array& array, const char* name) {
  const auto values = int64_array(array, 1, name);
  return {values.data(), values.data() + values.size()};
}

Matrix matrix(py::array& array) {
  const DType dtype = matrix_dtype(array.dtype(), "out");
  if (!array.writeable()) fail(ErrorKind::Dtype, "out: the array is read-only");
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

int checked_threads(int threads) {
  if (threads >= 1 && threads <= kMaxThreads) return threads;
  fail(ErrorKind::Bounds, "threads must be from 1 to " + std::to_string(kMaxThreads));
}

Access parse_access(const std::string& pattern) {
  if (pattern == "random") return Access::Random;
  if (pattern == "sequential") return Access::Sequential;
  fail(ErrorKind::Bounds, "unknown pattern '" + pattern + "': expected random or sequential");
}

std::shared_ptr<FeatureStore> make_store(int64_t columns, const std::string& dtype,
                                         std::vector<std::string> files, const py::array& extents,
                                         int max_open) {
  const auto table = int64_array(extents, 2, "extents");
  if (table.shape(1) != 4) fail(ErrorKind::Bounds, "extents: expected 4 columns");
  std::vector<Extent> list(table.shape(0));
  for (size_t i = 0; i < list.size(); ++i) {
    list[i] = {table.at(i, 0), table.at(i, 1), table.at(i, 2), table.at(i, 3)};
  }
  return std::make_shared<FeatureStore>(columns, parse_dtype(dtype), std::move(files),
                                        std::move(list), max_open);
}

void gather_into(const FeatureStore& store, const py::array& rows, py::array out, int threads) {
  const auto indices = int64_array(rows, 1, "rows");
  const Matrix target = matrix(out);
  checked_threads(threads);
  const py::gil_scoped_release unlocked;
  store.gather(indices.data(), indices.size(), target, threads);
}

void announce(const FeatureStore& store, const py::array& rows) {
  const auto indices = int64_array(rows, 1, "rows");
  const py::gil_scoped_release unlocked;
  store.will_need(indices.data(), indices.size());
}

void read_into(const FeatureStore& store, int64_t start, int64_t stop, py::array out,
               int threads) {
  const Matrix target = matrix(out);
  checked_threads(threads);
  const py::gil_scoped_release unlocked;
  store.read(start, stop, target, threads);
}

/// A Prefetcher that keeps the arrays it fills alive.
class PyPrefetcher {
 public:
  using Sources = std::vector<std::pair<std::shared_ptr<FeatureStore>, int64_t>>;

  PyPrefetcher(const Sources& sources, const py::array& rows, const py::array& bounds,
               std::vector<py::array> buffers, int threads)
      : buffers_(std::move(buffers)),
        prefetcher_(cast(sources), to_vector(rows, "rows"), to_vector(bounds, "bounds"),
                    matrices(buffers_), checked_threads(threads)) {}
  ~PyPrefetcher() { close(); }

  std::optional<std::pair<int64_t, int64_t>> next() {
    const py::gil_scoped_release unlocked;
    const auto batch = prefetcher_.next();
    if (!batch) return std::nullopt;
    return std::make_pair(batch->buffer, batch->rows);
  }

  void release(int64_t buffer) { prefetcher_.release(buffer); }

  void close() {
    const py::gil_scoped_release unlocked;
    prefetcher_.close();
  }

 private:
  static std::vector<Prefetcher::Source> cast(const Sources& sources) {
    std::vector<Prefetcher::Source> result;
    for (const auto& [store, column] : sources) {
      if (!store) fail(ErrorKind::Bounds, "sources: a store is None");
      result.push_back({store, column});
    }
    return result;
  }

  static std::vector<Matrix> matrices(std::vector<py::array>& arrays) {
    std::vector<Matrix> result;
    for (py::array& array : arrays) result.push_back(matrix(array));
    return result;
  }

  std::vector<py::array> buffers_;
  Prefetcher prefetcher_;
};

/// StoreError in Python: an Exception with the attribute `kind`.
void register_error(py::module_& module) {
  static py::handle type;
  type = py::exception<StoreError>(module, "StoreError").release();
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const StoreError& error) {
      const py::object instance = py::reinterpret_borrow<py::object>(type)(error.what());
      instance.attr("kind") = name(error.kind());
      PyErr_SetObject(type.ptr(), instance.ptr());
    }
  });
}

}  // namespace
}  // namespace shazam

PYBIND11_MODULE(_core, module) {
  using namespace shazam;
  using py::arg;
  module.doc() = "Rows of feature matrices from memory-mapped files, and the student's arithmetic.";
  register_error(module);
  bind_student(module);

  py::class_<FeatureStore, std::shared_ptr<FeatureStore>>(module, "FeatureStore")
      .def(py::init(&make_store), arg("columns"), arg("dtype"), arg("files"), arg("extents"),
           arg("max_open") = 512)
      .def_property_readonly("rows", &FeatureStore::rows)
      .def_property_readonly("columns", &FeatureStore::columns)
      .def_property_readonly("dtype", [](const FeatureStore& self) { return name(self.dtype()); })
      .def_property_readonly("itemsize",
                             [](const FeatureStore& self) { return item_size(self.dtype()); })
      .def("gather", &gather_into, arg("rows"), arg("out"), arg("threads") = 1)
      .def("will_need", &announce, arg("rows"))
      .def("read", &read_into, arg("start"), arg("stop"), arg("out"), arg("threads") = 1)
      .def("check_finite", &FeatureStore::check_finite, arg("start"), arg("stop"),
           py::call_guard<py::gil_scoped_release>())
      .def("advise", [](FeatureStore& self, const std::string& pattern) {
             self.advise(parse_access(pattern));
           }, arg("pattern"));

  py::class_<PyPrefetcher>(module, "Prefetcher")
      .def(py::init<const PyPrefetcher::Sources&, const py::array&, const py::array&,
                    std::vector<py::array>, int>(),
           arg("sources"), arg("rows"), arg("bounds"), arg("buffers"), arg("threads") = 1)
      .def("next", &PyPrefetcher::next)
      .def("release", &PyPrefetcher::release, arg("buffer"))
      .def("close", &PyPrefetcher::close);
}
