// Matrix products of tiles for one instruction set; included after row_kernels.inl, like it.

constexpr int64_t kStep = 16;  // of the depth, between which features are widened

TARGET inline Vector load_bfloat(const std::byte* from) {
  typedef uint16_t Narrow __attribute__((vector_size(sizeof(Vector) / 2)));
  Narrow narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  const Integers bits = __builtin_convertvector(narrow, Integers) << 16;
  Vector values;
  std::memcpy(&values, &bits, sizeof(values));
  return values;
}

/// `lanes` values of any dtype as float32, followed by 0.
TARGET inline Vector load_widened(DType dtype, const std::byte* from, int64_t lanes) {
  if (dtype == DType::Float32) return load(reinterpret_cast<const float*>(from), lanes);
  std::byte padded[2 * kLanes];
  if (lanes < kLanes) {
    for (int64_t i = 0; i < 2 * kLanes; ++i) padded[i] = i < 2 * lanes ? from[i] : std::byte{0};
    from = padded;
  }
  return dtype == DType::Float16 ? load_half(from) : load_bfloat(from);
}

/// Widens features a few at a time.
class Widening {
 public:
  /// So many a call that `calls` calls of `some` widen all.
  Widening(const Widened& task, int64_t calls)
      : task_(task), each_((task.rows * vectors(task.depth) + calls - 1) / calls) {}

  static int64_t vectors(int64_t depth) { return (depth + kLanes - 1) / kLanes; }

  TARGET inline void some() {
    for (int64_t i = 0; i < each_ && row_ < task_.rows; ++i) widen_one();
  }

 private:
  TARGET inline void widen_one() {
    const int64_t lanes = std::min(kLanes, task_.depth - k_);
    const std::byte* const from = task_.from + row_ * task_.stride + k_ * item_size(task_.dtype);
    __builtin_prefetch(from + task_.ahead, 0, 2);
    Vector values = load_widened(task_.dtype, from, lanes);
    if (task_.shift != nullptr) values = values - load(task_.shift + k_, lanes);
    store(task_.to + row_ * kTileStride + k_, values, lanes);
    k_ += kLanes;
    if (k_ < task_.depth) return;
    k_ = 0;
    ++row_;
  }

  const Widened& task_;
  const int64_t each_;
  int64_t row_ = 0, k_ = 0;
};

TARGET void widen_tile(const Widened& task) { Widening(task, 1).some(); }

/// Rows [row, row + R) of the product times one panel of the weights. Values of x that lie below each
/// other are kBelow apart, those beside each other `beside`; a whole panel has all its columns.
template <int R, int64_t kBelow, bool kWhole>
TARGET inline void multiply_block(const TileProduct& task, const float* x, int64_t beside,
                                  int64_t row, int64_t panel, Widening& next) {
  const int64_t column = panel * 2 * kLanes;
  const int64_t lanes[2] = {
      kWhole ? kLanes : std::min(kLanes, task.columns - column),
      kWhole ? kLanes : std::clamp<int64_t>(task.columns - column - kLanes, 0, kLanes)};
  const int64_t second = lanes[1] > 0 ? kLanes : 0;
  float* const out = task.out + row * task.stride + column;
  Vector sums[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const float* const from = task.bias == nullptr ? out + r * task.stride : task.bias + column;
    sums[r][0] = load(from, lanes[0]);
    sums[r][1] = load(from + second, lanes[1]);
  }
  const float* w = task.weights + panel * task.panel_step;
  for (int64_t k = 0; k < task.depth; next.some()) {
    const int64_t end = std::min(task.depth, k + kStep);
    for (; k < end; ++k, x += beside, w += task.weight_step) {
      const Vector left = load(w, lanes[0]), right = load(w + second, lanes[1]);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vector value = broadcast(x[r * kBelow]);
        sums[r][0] = multiply_add(value, left, sums[r][0]);
        sums[r][1] = multiply_add(value, right, sums[r][1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    store(out + r * task.stride, sums[r][0], lanes[0]);
    if (lanes[1] > 0) store(out + r * task.stride + kLanes, sums[r][1], lanes[1]);
  }
}

template <int64_t kBelow, bool kWhole>
TARGET inline void multiply_panel(const TileProduct& task, int64_t beside, int64_t panel,
                                  Widening& next) {
  int64_t row = 0;
  const float* x = task.x;
  for (; row + kBlockRows <= task.rows; row += kBlockRows, x += kBlockRows * kBelow) {
    multiply_block<kBlockRows, kBelow, kWhole>(task, x, beside, row, panel, next);
  }
  for (; row + 4 <= task.rows; row += 4, x += 4 * kBelow) {
    multiply_block<4, kBelow, kWhole>(task, x, beside, row, panel, next);
  }
  for (; row < task.rows; ++row, x += kBelow) {
    multiply_block<1, kBelow, kWhole>(task, x, beside, row, panel, next);
  }
}

/// A panel stays in the nearest cache while it is multiplied with all rows.
template <int64_t kBelow>
TARGET inline void multiply_panels(const TileProduct& task, int64_t beside) {
  const int64_t whole = task.columns / (2 * kLanes);
  const int64_t steps = (task.depth + kStep - 1) / kStep;
  Widening next(task.next, std::max<int64_t>(1, whole) * steps);
  for (int64_t panel = 0; panel < whole; ++panel) {
    multiply_panel<kBelow, true>(task, beside, panel, next);
  }
  if (whole * 2 * kLanes < task.columns) multiply_panel<kBelow, false>(task, beside, whole, next);
}

TARGET void multiply_tile(const TileProduct& task) { multiply_panels<kTileStride>(task, 1); }

TARGET void multiply_columns(const TileProduct& task) { multiply_panels<1>(task, task.x_step); }
