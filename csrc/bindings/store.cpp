#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/unlocked.h"
#include "store/feature_store.h"
#include "store/file_states.h"
#include "store/prefetcher.h"
#include "store/take.h"

namespace shazam {
namespace {

Access parse_access(const std::string& pattern) {
  if (pattern == "random") return Access::Random;
  if (pattern == "sequential") return Access::Sequential;
  throw StoreError(ErrorKind::Bounds, "unknown pattern '" + pattern + "': expected random or sequential");
}

/// Paths as the system knows them, whether given as str, bytes or os.PathLike.
std::vector<std::string> paths(const py::sequence& files) {
  std::vector<std::string> result;
  result.reserve(files.size());
  for (const py::handle file : files) {
    PyObject* bytes = nullptr;
    if (!PyUnicode_FSConverter(file.ptr(), &bytes)) throw py::error_already_set();
    result.push_back(py::reinterpret_steal<py::bytes>(bytes));
  }
  return result;
}

std::vector<int64_t> to_vector(const py::array& array, const char* name) {
  const auto values = int64_array(array, 1, name);
  return {values.data(), values.data() + values.size()};
}

using ManifestStamp = std::tuple<std::string, int64_t, uint64_t>;  // path, modified_ns, inode

std::shared_ptr<FeatureStore> make_store(int64_t columns, const std::string& dtype,
                                         const py::sequence& files, const py::array& extents,
                                         int max_open,
                                         const std::optional<ManifestStamp>& manifest,
                                         const std::optional<py::array>& modified) {
  const auto table = int64_array(extents, 2, "extents");
  require(table.shape(1) == 4, "extents", "4 columns");
  std::vector<Extent> list(table.shape(0));
  for (size_t i = 0; i < list.size(); ++i) {
    list[i] = {table.at(i, 0), table.at(i, 1), table.at(i, 2), table.at(i, 3)};
  }
  std::optional<Manifest> listing;
  if (manifest) {
    const auto& [path, modified_ns, inode] = *manifest;
    listing = Manifest{path, modified_ns, inode};
  }
  return std::make_shared<FeatureStore>(columns, parse_dtype(dtype), paths(files),
                                        std::move(list), max_open, std::move(listing),
                                        modified ? to_vector(*modified, "modified")
                                                 : std::vector<int64_t>());
}

void gather_into(const FeatureStore& store, const py::array& rows, py::array out, int threads) {
  const auto indices = int64_array(rows, 1, "rows");
  const Matrix target = output_matrix(out);
  checked_threads(threads);
  const Unlocked unlocked;
  store.gather(indices.data(), indices.size(), target, threads);
}

void read_ahead(const FeatureStore& store, const py::array& rows) {
  const auto indices = int64_array(rows, 1, "rows");
  const Unlocked unlocked;
  store.read_ahead(indices.data(), indices.size());
}

bool gather_past_cache(const FeatureStore& store, const py::array& rows, py::array out,
                       int threads) {
  const auto indices = int64_array(rows, 1, "rows");
  const Matrix target = output_matrix(out);
  checked_threads(threads);
  const Unlocked unlocked;
  return store.gather_past_cache(indices.data(), indices.size(), target, threads);
}

void read_into(const FeatureStore& store, int64_t start, int64_t stop, py::array out,
               int threads) {
  const Matrix target = output_matrix(out);
  checked_threads(threads);
  const Unlocked unlocked;
  store.read(start, stop, target, threads);
}

int64_t check_finite(const FeatureStore& store, int64_t start, int64_t stop) {
  const Unlocked unlocked;
  return store.check_finite(start, stop);
}

void take_into(const py::array& features, const py::array& rows, py::array out) {
  const Matrix source = feature_matrix(features);
  const auto indices = int64_array(rows, 1, "rows");
  check_rows(indices, source.rows);
  const Matrix target = output_matrix(out);
  require(target.rows == indices.size() && target.columns == source.columns &&
              target.dtype == DType::Float32,
          "out", "float32 of a shape that fits the other arrays");
  const Unlocked unlocked;
  take_rows(source, indices.data(), indices.size(), target);
}

py::array_t<int64_t> states_of(const py::sequence& files) {
  const std::vector<std::string> looked_at = paths(files);
  py::array_t<int64_t> states({static_cast<py::ssize_t>(looked_at.size()), py::ssize_t{4}});
  auto* const rows = reinterpret_cast<FileState*>(states.mutable_data());
  const Unlocked unlocked;
  file_states(looked_at, rows);
  return states;
}

/// A Prefetcher that keeps the arrays it fills alive.
class PyPrefetcher {
 public:
  using Sources = std::vector<std::pair<std::shared_ptr<FeatureStore>, int64_t>>;

  PyPrefetcher(const Sources& sources, const py::array& rows, const py::array& bounds,
               std::vector<py::array> buffers, int threads, bool past_cache)
      : buffers_(std::move(buffers)),
        prefetcher_(cast(sources), to_vector(rows, "rows"), to_vector(bounds, "bounds"),
                    matrices(buffers_), checked_threads(threads), past_cache) {}
  ~PyPrefetcher() { close(); }

  std::optional<std::pair<int64_t, int64_t>> next() {
    const Unlocked unlocked;
    const auto batch = prefetcher_.next();
    if (!batch) return std::nullopt;
    return std::make_pair(batch->buffer, batch->rows);
  }

  void release(int64_t buffer) { prefetcher_.release(buffer); }

  void close() {
    const Unlocked unlocked;
    prefetcher_.close();
  }

 private:
  static std::vector<Prefetcher::Source> cast(const Sources& sources) {
    std::vector<Prefetcher::Source> result;
    for (const auto& [store, column] : sources) {
      require(store != nullptr, "sources", "stores, found None");
      result.push_back({store, column});
    }
    return result;
  }

  static std::vector<Matrix> matrices(std::vector<py::array>& arrays) {
    std::vector<Matrix> result;
    for (py::array& array : arrays) result.push_back(output_matrix(array));
    return result;
  }

  std::vector<py::array> buffers_;
  Prefetcher prefetcher_;
};

}  // namespace

void bind_store(py::module_& module) {
  using py::arg;
  py::class_<FeatureStore, std::shared_ptr<FeatureStore>>(module, "FeatureStore")
      .def(py::init(&make_store), arg("columns"), arg("dtype"), arg("files"), arg("extents"),
           arg("max_open") = 512, arg("manifest") = py::none(), arg("modified") = py::none())
      .def_property_readonly("rows", &FeatureStore::rows)
      .def_property_readonly("columns", &FeatureStore::columns)
      .def_property_readonly("dtype", [](const FeatureStore& self) { return name(self.dtype()); })
      .def_property_readonly("itemsize",
                             [](const FeatureStore& self) { return item_size(self.dtype()); })
      .def("gather", &gather_into, arg("rows"), arg("out"), arg("threads") = 1)
      .def("gather_past_cache", &gather_past_cache, arg("rows"), arg("out"), arg("threads") = 1)
      .def("read_ahead", &read_ahead, arg("rows"))
      .def("read", &read_into, arg("start"), arg("stop"), arg("out"), arg("threads") = 1)
      .def("check_finite", &check_finite, arg("start"), arg("stop"))
      .def("advise", [](FeatureStore& self, const std::string& pattern) {
             self.advise(parse_access(pattern));
           }, arg("pattern"));

  module.def("file_states", &states_of, arg("files"));
  module.def("take_rows", &take_into, arg("features"), arg("rows"), arg("out"));

  py::class_<PyPrefetcher>(module, "Prefetcher")
      .def(py::init<const PyPrefetcher::Sources&, const py::array&, const py::array&,
                    std::vector<py::array>, int, bool>(),
           arg("sources"), arg("rows"), arg("bounds"), arg("buffers"), arg("threads") = 1,
           arg("past_cache") = false)
      .def("next", &PyPrefetcher::next)
      .def("release", &PyPrefetcher::release, arg("buffer"))
      .def("close", &PyPrefetcher::close);
}

}  // namespace shazam
