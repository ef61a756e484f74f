// Matrix products of tiles for one instruction set; included after row_kernels.inl, like it.

/// Fetches what is read next of the rows [row, row + rows): this panel's part, all taking turns.
inline void fetch_next(const TileProduct& task, int64_t row, int64_t rows, int64_t panel) {
  constexpr int64_t kLine = 64;  // bytes
  const int64_t lines = (task.next.bytes + kLine - 1) / kLine;
  const int64_t panels = (task.columns + 2 * kLanes - 1) / (2 * kLanes);
  const int64_t end = (panel + 1) * lines / panels;
  const int64_t last = std::min(row + rows, task.next.rows);
  for (int64_t line = panel * lines / panels; line < end; ++line) {
    const std::byte* from = task.next.data + row * task.next.stride + line * kLine;
    for (int64_t r = row; r < last; ++r, from += task.next.stride) __builtin_prefetch(from, 0, 2);
  }
}

/// Rows [row, row + R) of the product times one panel of the weights. Values of x that lie below each
/// other are kBelow apart, those beside each other `beside`; a whole panel has all its columns.
template <int R, int64_t kBelow, bool kWhole>
TARGET inline void multiply_block(const TileProduct& task, const float* x, int64_t beside,
                                  int64_t row, int64_t panel) {
  const int64_t column = panel * 2 * kLanes;
  const int64_t lanes[2] = {
      kWhole ? kLanes : std::min(kLanes, task.columns - column),
      kWhole ? kLanes : std::clamp<int64_t>(task.columns - column - kLanes, 0, kLanes)};
  const int64_t second = lanes[1] > 0 ? kLanes : 0;
  float* const out = task.out + row * task.stride + column;
  if (task.next.bytes > 0) fetch_next(task, row, R, panel);
  Vector sums[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const float* const from = task.bias == nullptr ? out + r * task.stride : task.bias + column;
    sums[r][0] = load(from, lanes[0]);
    sums[r][1] = load(from + second, lanes[1]);
  }
  const float* w = task.weights + panel * task.panel_step;
  for (int64_t k = 0; k < task.depth; ++k, x += beside, w += task.weight_step) {
    const Vector left = load(w, lanes[0]), right = load(w + second, lanes[1]);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vector value = broadcast(x[r * kBelow]);
      sums[r][0] = multiply_add(value, left, sums[r][0]);
      sums[r][1] = multiply_add(value, right, sums[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    store(out + r * task.stride, sums[r][0], lanes[0]);
    if (lanes[1] > 0) store(out + r * task.stride + kLanes, sums[r][1], lanes[1]);
  }
}

template <int64_t kBelow, bool kWhole>
TARGET inline void multiply_panel(const TileProduct& task, int64_t beside, int64_t panel) {
  int64_t row = 0;
  const float* x = task.x;
  for (; row + kBlockRows <= task.rows; row += kBlockRows, x += kBlockRows * kBelow) {
    multiply_block<kBlockRows, kBelow, kWhole>(task, x, beside, row, panel);
  }
  for (; row + 4 <= task.rows; row += 4, x += 4 * kBelow) {
    multiply_block<4, kBelow, kWhole>(task, x, beside, row, panel);
  }
  for (; row < task.rows; ++row, x += kBelow) {
    multiply_block<1, kBelow, kWhole>(task, x, beside, row, panel);
  }
}

/// A panel stays in the nearest cache while it is multiplied with all rows.
template <int64_t kBelow>
TARGET inline void multiply_panels(const TileProduct& task, int64_t beside) {
  const int64_t whole = task.columns / (2 * kLanes);
  for (int64_t panel = 0; panel < whole; ++panel) {
    multiply_panel<kBelow, true>(task, beside, panel);
  }
  if (whole * 2 * kLanes < task.columns) multiply_panel<kBelow, false>(task, beside, whole);
}

TARGET void multiply_tile(const TileProduct& task) { multiply_panels<kTileStride>(task, 1); }

TARGET void multiply_columns(const TileProduct& task) { multiply_panels<1>(task, task.x_step); }
