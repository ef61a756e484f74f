// The row kernels in terms of one instruction set. Included once for each, inside a namespace that
// defines TARGET, Vector, kLanes and the functions of a Vector; hence no include guard.

constexpr int64_t kLeftBlock = 2;  // 2 x 4 sums and their operands fit 16 registers
constexpr int64_t kRightBlock = 4;

struct Sums {
  Vector of[kLeftBlock][kRightBlock];
};

/// Adds the products of one Vector of every row; `lanes` < kLanes at the end of the rows.
TARGET inline void add_products(const float* const* left, const float* const* right, int64_t d,
                                int64_t lanes, Sums& sums) {
  const Vector a = load(left[0] + d, lanes);
  const Vector b = load(left[1] + d, lanes);
#pragma GCC unroll 4
  for (int j = 0; j < kRightBlock; ++j) {
    const Vector y = load(right[j] + d, lanes);
    sums.of[0][j] = multiply_add(a, y, sums.of[0][j]);
    sums.of[1][j] = multiply_add(b, y, sums.of[1][j]);
  }
}

TARGET inline Sums block_sums(const float* const* left, const float* const* right, int64_t width) {
  Sums sums;
#pragma GCC unroll 4
  for (int j = 0; j < kRightBlock; ++j) sums.of[0][j] = sums.of[1][j] = broadcast(0.0f);
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) add_products(left, right, d, kLanes, sums);
  if (d < width) add_products(left, right, d, width - d, sums);
  return sums;
}

TARGET void dots(ConstRows left, ConstRows right, int64_t width, float scale, float* out) {
  for (int64_t i = 0; i < left.count; i += kLeftBlock) {
    // A block that sticks out repeats its last row, which costs less than code for every remainder.
    const int64_t below = std::min(i + 1, left.count - 1);
    const float* const l[kLeftBlock] = {left[i], left[below]};
    for (int64_t j = 0; j < right.count; j += kRightBlock) {
      const int64_t last = right.count - 1, columns = std::min(kRightBlock, right.count - j);
      const float* const r[kRightBlock] = {right[j], right[std::min(j + 1, last)],
                                           right[std::min(j + 2, last)],
                                           right[std::min(j + 3, last)]};
      const Sums sums = block_sums(l, r, width);
      float found[kLeftBlock][kRightBlock];
      add_lanes(sums.of[0], found[0]);
      add_lanes(sums.of[1], found[1]);
      for (int64_t c = 0; c < columns; ++c) {
        out[i * right.count + j + c] = scale * found[0][c];
        out[below * right.count + j + c] = scale * found[below - i][c];
      }
    }
  }
}

/// The rows first ... first + R - 1 of the result.
template <int R>
TARGET inline void combine_block(Weights weights, ConstRows rows, int64_t width, MutableRows out,
                                 int64_t first) {
  const float* const block = weights.data + first * weights.row_step;
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    Vector sums[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[r] = broadcast(0.0f);
    for (int64_t j = 0; j < rows.count; ++j) {
      const Vector row = load(rows[j] + d, lanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const float weight = block[r * weights.row_step + j * weights.column_step];
        sums[r] = multiply_add(broadcast(weight), row, sums[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) store(out[first + r] + d, sums[r], lanes);
  }
}

TARGET void combine(Weights weights, ConstRows rows, int64_t width, MutableRows out) {
  for (int64_t first = 0; first < out.count; first += 4) {
    switch (out.count - first) {
      case 1: combine_block<1>(weights, rows, width, out, first); break;
      case 2: combine_block<2>(weights, rows, width, out, first); break;
      case 3: combine_block<3>(weights, rows, width, out, first); break;
      default: combine_block<4>(weights, rows, width, out, first);
    }
  }
}

TARGET Comparison compare(const float* x, const float* y, int64_t width, float limit) {
  const Vector high = broadcast(limit), low = broadcast(-limit), half = broadcast(-0.5f);
  Vector sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    const Vector a = load(x + d, lanes), b = load(y + d, lanes);
    const Vector z = subtract(a, b), c = clamp(z, low, high);
    sums[0] = multiply_add(a, b, sums[0]);
    sums[1] = multiply_add(b, b, sums[1]);
    sums[2] = multiply_add(c, multiply_add(half, c, z), sums[2]);
  }
  float found[4];
  add_lanes(sums, found);
  return {found[0], found[1], found[2]};
}

TARGET void pull(const Pull& pull, const float* x, const float* y, int64_t width, float* d_x,
                 float* d_y) {
  const Vector across = broadcast(pull.across), own = broadcast(pull.own);
  const Vector slope = broadcast(pull.slope);
  const Vector high = broadcast(pull.limit), low = broadcast(-pull.limit);
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    const Vector a = load(x + d, lanes), b = load(y + d, lanes);
    const Vector step = multiply(slope, clamp(subtract(a, b), low, high));
    store(d_x + d, multiply_add(across, b, add(load(d_x + d, lanes), step)), lanes);
    if (d_y == nullptr) continue;
    const Vector aligned = multiply_add(across, a, multiply(own, b));
    store(d_y + d, subtract(aligned, step), lanes);
  }
}
