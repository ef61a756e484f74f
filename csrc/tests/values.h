#pragma once

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace shazam::testing {

using Values = std::vector<float>;

/// What an output holds before it is written: a number that was left out is then seen.
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

inline Values normal(int64_t count, unsigned seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0.0f, scale);
  Values values(count);
  for (float& value : values) value = draw(random);
  return values;
}

}  // namespace shazam::testing
