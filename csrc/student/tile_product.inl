// Matrix products of tiles for one instruction set; included after row_kernels.inl, like it.

/// Rows [row, row + R) of the product times one panel of the weights.
template <int R>
TARGET inline void multiply_block(const TileProduct& task, int64_t row, int64_t panel) {
  const int64_t column = panel * 2 * kLanes;
  const int64_t lanes[2] = {std::min(kLanes, task.columns - column),
                            std::clamp<int64_t>(task.columns - column - kLanes, 0, kLanes)};
  float* const out = task.out + row * task.stride + column;
  Vector sums[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const float* const from = task.bias == nullptr ? out + r * task.stride : task.bias + column;
    sums[r][0] = load(from, lanes[0]);
    sums[r][1] = load(from + (lanes[1] > 0 ? kLanes : 0), lanes[1]);
  }
  const float* x = task.x + row * kTileStride;
  const float* w = task.weights + panel * task.panel_step;
  for (int64_t k = 0; k < task.depth; ++k, ++x, w += 2 * kLanes) {
    const Vector left = load(w, kLanes), right = load(w + kLanes, kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vector value = broadcast(x[r * kTileStride]);
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

/// A panel stays in the nearest cache while it is multiplied with all rows.
TARGET void multiply_tile(const TileProduct& task) {
  const int64_t panels = (task.columns + 2 * kLanes - 1) / (2 * kLanes);
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t row = 0;
    for (; row + kBlockRows <= task.rows; row += kBlockRows) {
      multiply_block<kBlockRows>(task, row, panel);
    }
    for (; row + 4 <= task.rows; row += 4) multiply_block<4>(task, row, panel);
    for (; row < task.rows; ++row) multiply_block<1>(task, row, panel);
  }
}
