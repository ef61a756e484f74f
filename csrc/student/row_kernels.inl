// The row kernels for one instruction set. Included once per instruction set, inside a namespace
// that defines TARGET, Vector, kLanes and the functions of a Vector; hence no include guard.

constexpr int64_t kLeftBlock = 2;  // 2 x 4 sums and their operands fit 16 registers
constexpr int64_t kRightBlock = 4;

/// A Vector anywhere in memory, as the compiler's own unaligned loads and stores have it.
typedef Vector UnalignedVector __attribute__((aligned(alignof(float)), may_alias));

/// The first `lanes` values, followed by 0.
TARGET inline Vector load(const float* from, int64_t lanes) {
  return lanes >= kLanes ? *reinterpret_cast<const UnalignedVector*>(from)
                         : load_first(from, lanes);
}

TARGET inline void store(float* to, Vector v, int64_t lanes) {
  if (lanes >= kLanes) {
    *reinterpret_cast<UnalignedVector*>(to) = v;
  } else {
    store_first(to, v, lanes);
  }
}

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
    const Vector z = a - b, c = clamp(z, low, high);
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
    const Vector step = slope * clamp(a - b, low, high);
    store(d_x + d, multiply_add(across, b, load(d_x + d, lanes) + step), lanes);
    if (d_y == nullptr) continue;
    const Vector aligned = multiply_add(across, a, own * b);
    store(d_y + d, aligned - step, lanes);
  }
}

TARGET void add(float* x, float factor, const float* y, int64_t width) {
  const Vector times = broadcast(factor);
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    store(x + d, multiply_add(times, load(y + d, lanes), load(x + d, lanes)), lanes);
  }
}

TARGET void standardise(float* x, const float* mean, const float* inverse, int64_t width) {
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    const Vector centred = load(x + d, lanes) - load(mean + d, lanes);
    store(x + d, centred * load(inverse + d, lanes), lanes);
  }
}

TARGET void normalise_relu(float* x, int64_t width, float epsilon) {
  const auto n = static_cast<float>(width);
  Vector sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  float found[4];
  for (int64_t d = 0; d < width; d += kLanes) {
    const Vector value = load(x + d, std::min(kLanes, width - d));
    sums[0] = sums[0] + (value < 0.0f ? Vector{} : value);  // NaN stays
  }
  add_lanes(sums, found);
  const Vector mean = broadcast(found[0] / n);
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    const Vector value = load(x + d, lanes);
    store(x + d, (value < 0.0f ? Vector{} : value) - mean, lanes);
    const Vector centred = load(x + d, lanes);  // 0 behind the end
    sums[1] = multiply_add(centred, centred, sums[1]);
  }
  add_lanes(sums, found);
  const Vector scale = broadcast(1.0f / std::sqrt(found[1] / n + epsilon));
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t lanes = std::min(kLanes, width - d);
    store(x + d, load(x + d, lanes) * scale, lanes);
  }
}

using Integers = uint32_t __attribute__((vector_size(sizeof(Vector))));

/// exp(x) to about one unit in the last place for x <= 0; 0 below -87, NaN for NaN.
TARGET inline Vector exp_of_negative(Vector x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = x * 1.44269504f + kShift;
  const Vector n = shifted - kShift;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n log 2, in two steps
  Vector p = r * 1.98756915e-4f + 1.39819995e-3f;
  p = p * r + 8.33345191e-3f;
  p = p * r + 4.16657959e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * r * r + r + 1.0f;
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000u;  // 2^n
  Vector power;
  std::memcpy(&power, &bits, sizeof(power));
  return x < -87.0f ? Vector{} : p * power;
}

TARGET void exponentials(float* x, int64_t count) {
  for (int64_t d = 0; d < count; d += kLanes) {
    const int64_t lanes = std::min(kLanes, count - d);
    store(x + d, exp_of_negative(load(x + d, lanes)), lanes);
  }
}

/// product = left right, matrices [N, N] of which every value is a Vector, kFoldLanes apart.
TARGET inline void multiply_squares(const float* left, const float* right, bool transposed,
                                    int64_t N, float* product) {
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) {
      Vector sum = broadcast(0.0f);
      for (int64_t k = 0; k < N; ++k) {
        const int64_t other = transposed ? j * N + k : k * N + j;
        sum = multiply_add(load(left + (i * N + k) * kFoldLanes, kLanes),
                           load(right + other * kFoldLanes, kLanes), sum);
      }
      store(product + (i * N + j) * kFoldLanes, sum, kLanes);
    }
  }
}

TARGET inline void softmax_squares(float* scores, const float* penalty, int64_t N) {
  for (float* row = scores; row != scores + N * N * kFoldLanes; row += N * kFoldLanes) {
    Vector largest = broadcast(-std::numeric_limits<float>::infinity());
    for (int64_t j = 0; j < N; ++j) {
      const Vector score = load(row + j * kFoldLanes, kLanes) +
                           load(penalty + j * kFoldLanes, kLanes);
      largest = score > largest ? score : largest;
      store(row + j * kFoldLanes, score, kLanes);
    }
    Vector sum = broadcast(0.0f);
    for (int64_t j = 0; j < N; ++j) {
      const Vector power = exp_of_negative(load(row + j * kFoldLanes, kLanes) - largest);
      sum = sum + power;
      store(row + j * kFoldLanes, power, kLanes);
    }
    const Vector inverse = broadcast(1.0f) / sum;
    for (int64_t j = 0; j < N; ++j) {
      float* const value = row + j * kFoldLanes;
      store(value, load(value, kLanes) * inverse, kLanes);
    }
  }
}

TARGET void fold(const FoldLanes& task) {
  const int64_t N = task.N, square = N * N * kFoldLanes;
  for (int64_t lane = 0; lane < kFoldLanes; lane += kLanes) {
    const float* const penalty = task.penalty + lane;
    float* M = task.scratch + lane;
    float* product = M + square;
    float* const moved = product + square;
    for (int64_t layer = 0; layer < task.K; ++layer) {
      const float* const S = task.scores + layer * square + lane;
      if (layer > 0) {
        multiply_squares(M, S, false, N, product);
        multiply_squares(product, M, true, N, moved);
        softmax_squares(moved, penalty, N);
        multiply_squares(moved, M, false, N, product);
        std::swap(M, product);
      } else {
        for (int64_t e = 0; e < N * N; ++e) {
          store(M + e * kFoldLanes, load(S + e * kFoldLanes, kLanes), kLanes);
        }
        softmax_squares(M, penalty, N);
      }
    }
    for (int64_t j = 0; j < N; ++j) {
      Vector sum = broadcast(0.0f);
      for (int64_t i = 0; i < N; ++i) {
        sum = multiply_add(load(task.part + i * kFoldLanes + lane, kLanes),
                           load(M + (i * N + j) * kFoldLanes, kLanes), sum);
      }
      store(task.shares + j * kFoldLanes + lane, sum, kLanes);
    }
  }
}
