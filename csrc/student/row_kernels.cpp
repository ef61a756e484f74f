#include "student/row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "store/convert.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The row kernels are compiled once per instruction set, from row_kernels.inl and tile_product.inl.
// Each namespace defines a Vector of kLanes floats and what its instruction set does differently:
// `load_first` and `store_first` read and write the first `lanes` < kLanes values and leave the
// rest 0 or untouched; `load_half` widens kLanes float16 values; `clamp` keeps NaN; `add_lanes` sums
// the lanes of each of four Vectors.

namespace shazam {
namespace {

namespace portable {

#define TARGET
using Vector = float __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
constexpr int kBlockRows = 6;  // 6 x 2 sums and their operands fit 16 registers

inline Vector load_first(const float* from, int64_t lanes) {
  Vector v = {};
  std::memcpy(&v, from, static_cast<size_t>(lanes) * sizeof(float));
  return v;
}
inline void store_first(float* to, Vector v, int64_t lanes) {
  std::memcpy(to, &v, static_cast<size_t>(lanes) * sizeof(float));
}
inline Vector load_half(const std::byte* from) {
  Vector v;
  widen(DType::Float16, from, &v, kLanes);
  return v;
}
inline Vector broadcast(float value) { return Vector{value, value, value, value}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector clamp(Vector v, Vector low, Vector high) {
  v = v > high ? high : v;
  return v < low ? low : v;
}
inline void add_lanes(const Vector* v, float* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
}
#include "student/row_kernels.inl"
#include "student/tile_product.inl"
#undef TARGET

}  // namespace portable

#if defined(__x86_64__)

namespace avx2 {

#define TARGET __attribute__((target("avx2,fma,f16c")))
using Vector = __m256;
constexpr int64_t kLanes = 8;
constexpr int kBlockRows = 6;

TARGET inline Vector broadcast(float value) { return _mm256_set1_ps(value); }
TARGET inline Vector clamp(Vector v, Vector low, Vector high) {
  // Of two operands of which one is NaN, min and max return the second.
  return _mm256_max_ps(low, _mm256_min_ps(high, v));
}
TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}
TARGET inline __m256i first_lanes(int64_t lanes) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), index);
}
TARGET inline Vector load_first(const float* from, int64_t lanes) {
  return _mm256_maskload_ps(from, first_lanes(lanes));
}
TARGET inline void store_first(float* to, Vector v, int64_t lanes) {
  _mm256_maskstore_ps(to, first_lanes(lanes), v);
}
TARGET inline Vector load_half(const std::byte* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
TARGET inline void add_lanes(const Vector* v, float* sums) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m128 upper = _mm256_extractf128_ps(pairs, 1);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), upper));
}
#include "student/row_kernels.inl"
#include "student/tile_product.inl"
#undef TARGET

}  // namespace avx2

namespace avx512 {

#define TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
using Vector = __m512;
constexpr int64_t kLanes = 16;
constexpr int kBlockRows = 12;  // of 32 registers

TARGET inline Vector broadcast(float value) { return _mm512_set1_ps(value); }
TARGET inline Vector clamp(Vector v, Vector low, Vector high) {
  // The masked forms: GCC 12 warns inside its own header about the plain ones.
  return _mm512_maskz_max_ps(0xffff, low, _mm512_maskz_min_ps(0xffff, high, v));
}
TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
TARGET inline __mmask16 first_lanes(int64_t lanes) {
  return static_cast<__mmask16>((1u << lanes) - 1);
}
TARGET inline Vector load_first(const float* from, int64_t lanes) {
  return _mm512_maskz_loadu_ps(first_lanes(lanes), from);
}
TARGET inline void store_first(float* to, Vector v, int64_t lanes) {
  _mm512_mask_storeu_ps(to, first_lanes(lanes), v);
}
TARGET inline Vector load_half(const std::byte* from) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
TARGET inline __m256 add_halves(Vector v) {
  // Masked as above; a plain cast of the lower half warns too.
  const __m512d bits = _mm512_castps_pd(v);
  return _mm256_add_ps(_mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xf, bits, 0)),
                       _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(0xf, bits, 1)));
}
TARGET inline void add_lanes(const Vector* v, float* sums) {
  const __m256 halves[4] = {add_halves(v[0]), add_halves(v[1]), add_halves(v[2]),
                            add_halves(v[3])};
  avx2::add_lanes(halves, sums);
}
#include "student/row_kernels.inl"
#include "student/tile_product.inl"
#undef TARGET

}  // namespace avx512

#endif

#define KERNELS(set)                                                                              \
  RowKernels{#set,              set::dots,          set::combine,          set::compare,       \
             set::pull,         set::add,           set::standardise,      set::normalise_relu, \
             set::exponentials, set::fold,          set::widen_tile,       set::multiply_tile, \
             set::multiply_columns, 2 * set::kLanes}

std::vector<RowKernels> detect_row_kernels() {
  std::vector<RowKernels> kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    if (__builtin_cpu_supports("avx512f")) kernels.push_back(KERNELS(avx512));
    kernels.push_back(KERNELS(avx2));
  }
#endif
  kernels.push_back(KERNELS(portable));
  return kernels;
}

}  // namespace

const std::vector<RowKernels>& row_kernels() {
  // Never freed: a thread may still compute while the process exits.
  static const auto* const kernels = new std::vector<RowKernels>(detect_row_kernels());
  return *kernels;
}

}  // namespace shazam
