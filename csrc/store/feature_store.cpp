#include "store/feature_store.h"

#include <algorithm>

#include "store/window.h"

namespace shazam {
namespace {

/// A row that was asked for, and where it goes.
struct Wanted {
  int64_t row;
  int64_t position;
};

/// In the order of the request, unless it may touch more files than can be open: then sorted, so
/// that every file is opened once.
std::vector<Wanted> visiting_order(const int64_t* rows, int64_t count, const FileTable& files) {
  std::vector<Wanted> wanted(count);
  for (int64_t i = 0; i < count; ++i) wanted[i] = {rows[i], i};
  if (std::min(count, files.size()) > files.max_open()) {
    std::sort(wanted.begin(), wanted.end(),
              [](const Wanted& a, const Wanted& b) { return a.row < b.row; });
  }
  return wanted;
}

template <typename Function>
void for_each_window(const FeatureStore& store, const std::vector<Wanted>& wanted, Function work) {
  for (size_t done = 0; done < wanted.size();) {
    Window window(store);
    while (done < wanted.size() && window.add(wanted[done].row, 1, wanted[done].position)) ++done;
    work(window);
  }
}

/// The position of a row in the output is its distance from `origin`. Stops when `work` says so.
template <typename Function>
void for_each_window(const FeatureStore& store, int64_t start, int64_t stop, int64_t origin,
                     Function work) {
  for (int64_t row = start; row < stop;) {
    Window window(store);
    while (row < stop) {
      const int64_t taken = window.add(row, stop - row, row - origin);
      if (taken == 0) break;
      row += taken;
    }
    if (!work(window)) return;
  }
}

std::string describe(int64_t rows, int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

}  // namespace

FeatureStore::FeatureStore(int64_t columns, DType dtype, std::vector<std::string> files,
                           std::vector<Extent> extents, int max_open,
                           std::optional<Manifest> manifest,
                           const std::vector<int64_t>& modified)
    : columns_(columns),
      dtype_(dtype),
      extents_(std::move(extents)),
      files_(std::move(files), max_open, std::move(manifest), modified) {
  if (columns < 1 || __builtin_mul_overflow(columns, item_size(dtype), &row_bytes_)) {
    throw StoreError(ErrorKind::Bounds, "a row cannot have " + std::to_string(columns) + " values");
  }
  first_row_.reserve(extents_.size() + 1);
  int64_t rows = 0;
  for (size_t i = 0; i < extents_.size(); ++i) {
    const Extent& extent = extents_[i];
    validate(i, extent);
    first_row_.push_back(rows);
    if (__builtin_add_overflow(rows, extent.rows, &rows)) {
      throw StoreError(ErrorKind::Bounds, "the extents have more than 2**63 rows");
    }
    if (extent.rows > 0) {
      files_.require(extent.file, extent.offset + (extent.rows - 1) * extent.stride + row_bytes_);
    }
  }
  first_row_.push_back(rows);
}

void FeatureStore::validate(int64_t index, const Extent& extent) const {
  const auto fail = [&](const std::string& what) {
    throw StoreError(ErrorKind::Bounds, "extent " + std::to_string(index) + ": " + what);
  };
  if (extent.file < 0 || extent.file >= files_.size()) {
    fail("file " + std::to_string(extent.file) + " is not one of the " +
         std::to_string(files_.size()) + " files");
  }
  if (extent.offset < 0 || extent.rows < 0) fail("negative offset or number of rows");
  if (extent.stride < row_bytes_) {
    fail("a row stride of " + std::to_string(extent.stride) + " bytes is less than the " +
         std::to_string(row_bytes_) + " bytes of a row");
  }
  int64_t end;
  if (__builtin_mul_overflow(extent.rows, extent.stride, &end) ||
      __builtin_add_overflow(end, extent.offset, &end)) {
    fail("offset + rows * stride overflows");
  }
}

void FeatureStore::gather(const int64_t* rows, int64_t count, const Matrix& out,
                          int threads) const {
  check_output(out, count);
  for_each_window(*this, visiting_order(rows, count, files_), [&](const Window& window) {
    window.copy_to(out, threads, window.read_ahead());
  });
}

bool FeatureStore::gather_past_cache(const int64_t* rows, int64_t count, const Matrix& out,
                                     int threads) const {
  check_output(out, count);
  const std::vector<Wanted> wanted = visiting_order(rows, count, files_);
  std::vector<Wanted> cached;  // what comes before the first window that is not
  bool found = false;
  size_t done = 0;
  for_each_window(*this, wanted, [&](const Window& window) {
    const auto begin = wanted.begin() + done;
    done += window.rows();
    const bool cold = window.looks_cold();
    if (!cold && !found) {
      cached.insert(cached.end(), begin, wanted.begin() + done);
      return;
    }
    found = true;
    if (cold && window.has_long_runs()) {
      window.copy_past_cache(out, threads);
    } else {
      window.copy_to(out, threads, window.read_ahead());
    }
  });
  if (!found) return false;
  for_each_window(*this, cached, [&](const Window& window) { window.copy_to(out, threads, false); });
  return true;
}

void FeatureStore::read(int64_t start, int64_t stop, const Matrix& out, int threads) const {
  check_range(start, stop);
  check_output(out, stop - start);
  for_each_window(*this, start, stop, start, [&](const Window& window) {
    window.copy_to(out, threads, window.read_ahead());
    return true;
  });
}

int64_t FeatureStore::check_finite(int64_t start, int64_t stop) const {
  check_range(start, stop);
  int64_t first = -1;
  for_each_window(*this, start, stop, 0, [&](const Window& window) {
    window.read_ahead();
    first = window.find_nonfinite();
    return first < 0;
  });
  return first;
}

void FeatureStore::will_need(const int64_t* rows, int64_t count) const {
  for_each_window(*this, visiting_order(rows, count, files_),
                  [](const Window& window) { window.read_ahead(); });
}

void FeatureStore::will_need_past_cache(const int64_t* rows, int64_t count) const {
  for_each_window(*this, visiting_order(rows, count, files_),
                  [](const Window& window) {
                    if (!window.has_long_runs()) window.read_ahead();
                  });
}

void FeatureStore::read_ahead(const int64_t* rows, int64_t count) const {
  for_each_window(*this, visiting_order(rows, count, files_),
                  [](const Window& window) { window.read_ahead(true); });
}

void FeatureStore::check_output(const Matrix& out, int64_t rows) const {
  if (out.rows != rows || out.columns != columns_) {
    throw StoreError(ErrorKind::Bounds, "out has shape " + describe(out.rows, out.columns) +
                                            ", expected " + describe(rows, columns_));
  }
  if (out.dtype != DType::Float32 && out.dtype != dtype_) {
    throw StoreError(ErrorKind::Dtype, std::string("out holds ") + name(out.dtype) +
                                           ", expected float32 or " + name(dtype_));
  }
}

void FeatureStore::check_range(int64_t start, int64_t stop) const {
  if (0 <= start && start <= stop && stop <= rows()) return;
  throw StoreError(ErrorKind::Bounds, "rows [" + std::to_string(start) + ", " +
                                          std::to_string(stop) + ") are not within [0, " +
                                          std::to_string(rows()) + ")");
}

}  // namespace shazam
