#include "store/convert.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace shazam {
namespace {

template <typename T>
T load(const void* base, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * sizeof(T), sizeof(T));
  return value;
}

void store(void* base, int64_t index, uint32_t bits) {
  std::memcpy(static_cast<char*>(base) + index * sizeof(bits), &bits, sizeof(bits));
}

uint32_t widen_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half & 0x7c00u;
  const uint32_t fraction = half & 0x03ffu;
  if (exponent == 0x7c00u) {
    const uint32_t quiet = fraction ? 0x00400000u : 0u;
    return sign | 0x7f800000u | quiet | fraction << 13;
  }
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign | load<uint32_t>(&magnitude, 0);
  }
  const uint32_t bias_difference = (127 - 15) << 23;
  return sign | (((exponent | fraction) << 13) + bias_difference);
}

void widen_half_portable(const void* source, void* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(target, i, widen_half(load<uint16_t>(source, i)));
}

#if defined(__x86_64__)

// Both widen a multiple of 8 or 16 values.

__attribute__((target("avx,f16c"))) void widen_eights(const uint16_t* from, float* to,
                                                      int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
}

__attribute__((target("avx512f"))) void widen_sixteens(const uint16_t* from, float* to,
                                                       int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    // The masked form of cvtph: GCC 12 warns inside its own header about the plain one.
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, halves));
  }
}

/// Widens in steps of `kStep` values, and what remains value by value.
template <int64_t kStep, void widen_steps(const uint16_t*, float*, int64_t)>
void widen_half_in_steps(const void* source, void* target, int64_t count) {
  const auto* from = static_cast<const uint16_t*>(source);
  auto* to = static_cast<float*>(target);
  const int64_t whole = count - count % kStep;
  widen_steps(from, to, whole);
  widen_half_portable(from + whole, to + whole, count - whole);
}

#endif

// Plain loops from here on: memory bound already with the vector width every compiler assumes.

void widen_bfloat(const void* source, void* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    store(target, i, static_cast<uint32_t>(load<uint16_t>(source, i)) << 16);
  }
}

/// A value is NaN or infinite exactly when every bit of its exponent is set.
template <typename Bits>
bool no_full_exponent(const void* values, int64_t count, Bits exponent) {
  Bits found = 0;
  for (int64_t i = 0; i < count; ++i) {
    found |= static_cast<Bits>((load<Bits>(values, i) & exponent) == exponent);
  }
  return found == 0;
}

std::vector<HalfKernel> detect_half_kernels() {
  std::vector<HalfKernel> kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    kernels.push_back({"avx512", widen_half_in_steps<16, widen_sixteens>});
  }
  if (__builtin_cpu_supports("f16c")) {
    kernels.push_back({"f16c", widen_half_in_steps<8, widen_eights>});
  }
#endif
  kernels.push_back({"portable", widen_half_portable});
  return kernels;
}

}  // namespace

const std::vector<HalfKernel>& half_kernels() {
  // Never freed: a thread may still compute while the process exits.
  static const auto* const kernels = new std::vector<HalfKernel>(detect_half_kernels());
  return *kernels;
}

void widen(DType dtype, const void* source, void* target, int64_t count) {
  static const auto widen_fastest = half_kernels().front().widen;
  switch (dtype) {
    case DType::Float16: return widen_fastest(source, target, count);
    case DType::BFloat16: return widen_bfloat(source, target, count);
    case DType::Float32: std::memcpy(target, source, static_cast<size_t>(count) * 4);
  }
}

bool all_finite(DType dtype, const void* values, int64_t count) {
  switch (dtype) {
    case DType::Float16: return no_full_exponent<uint16_t>(values, count, 0x7c00u);
    case DType::BFloat16: return no_full_exponent<uint16_t>(values, count, 0x7f80u);
    case DType::Float32: break;
  }
  return no_full_exponent<uint32_t>(values, count, 0x7f800000u);
}

}  // namespace shazam
