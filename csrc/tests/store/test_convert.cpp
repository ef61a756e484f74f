#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "store/convert.h"
#include "tests/check.h"

using namespace shazam;

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// The definition, from the value a float16 stands for.
uint32_t reference(uint16_t half) {
  const int exponent = (half >> 10) & 0x1f;
  const int fraction = half & 0x3ff;
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31;
  if (exponent == 31 && fraction != 0) return sign | 0x7fc00000u | (fraction << 13);
  const double magnitude = exponent == 31  ? std::numeric_limits<double>::infinity()
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return sign | bits_of(static_cast<float>(magnitude));
}

std::vector<uint16_t> all_16_bit_values() {
  std::vector<uint16_t> values(1 << 16);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

}  // namespace

TEST(every_half_is_exact_in_every_kernel) {
  const auto halves = all_16_bit_values();
  std::vector<uint32_t> widened(halves.size());
  for (const HalfKernel& kernel : half_kernels()) {
    kernel.widen(halves.data(), widened.data(), halves.size());
    int64_t wrong = 0;
    for (size_t i = 0; i < halves.size(); ++i) wrong += widened[i] != reference(halves[i]);
    std::printf("       %s: %lld wrong\n", kernel.name, static_cast<long long>(wrong));
    CHECK(wrong == 0);
  }
}

TEST(every_bfloat_is_the_upper_half_of_its_float) {
  const auto bfloats = all_16_bit_values();
  std::vector<uint32_t> widened(bfloats.size());
  widen(DType::BFloat16, bfloats.data(), widened.data(), bfloats.size());
  int64_t wrong = 0;
  for (uint32_t i = 0; i < bfloats.size(); ++i) wrong += widened[i] != i << 16;
  CHECK(wrong == 0);
}

TEST(any_length_at_any_address) {
  const auto halves = all_16_bit_values();
  std::vector<char> source(200), target(300);
  for (const HalfKernel& kernel : half_kernels()) {
    for (int64_t count = 0; count < 40; ++count) {
      std::memcpy(source.data() + 1, halves.data() + 15000, count * 2);
      std::memset(target.data(), 0x55, target.size());
      kernel.widen(source.data() + 1, target.data() + 3, count);
      for (int64_t i = 0; i < count; ++i) {
        uint32_t found;
        std::memcpy(&found, target.data() + 3 + 4 * i, 4);
        CHECK(found == reference(halves[15000 + i]));
      }
      CHECK(target[2] == 0x55 && target[3 + 4 * count] == 0x55);
    }
  }
}

TEST(finite_exactly_when_the_widened_value_is) {
  const auto values = all_16_bit_values();
  for (DType dtype : {DType::Float16, DType::BFloat16}) {
    int64_t wrong = 0;
    for (const uint16_t& value : values) {
      float widened;
      widen(dtype, &value, &widened, 1);
      wrong += all_finite(dtype, &value, 1) != std::isfinite(widened);
    }
    CHECK(wrong == 0);
  }
}

TEST(one_bad_value_is_found_anywhere) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    for (size_t at = 0; at < 37; ++at) {
      std::vector<float> values(37, std::numeric_limits<float>::max());
      CHECK(all_finite(DType::Float32, values.data(), values.size()));
      values[at] = bad;
      CHECK(!all_finite(DType::Float32, values.data(), values.size()));
    }
  }
}
