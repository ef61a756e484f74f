#include "store/take.h"

#include <algorithm>

#include "store/convert.h"

namespace shazam {
namespace {

constexpr int64_t kAhead = 2;             // rows that the CPU is told of before they are copied
constexpr int64_t kAheadBytes = 2 << 10;  // how much of their start; the hardware sees the rest

}  // namespace

void take_rows(const Matrix& source, const int64_t* rows, int64_t count, const Matrix& out) {
  const int64_t ahead = std::min(source.columns * item_size(source.dtype), kAheadBytes);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const std::byte* const later = source.row(rows[i + kAhead]);
      for (int64_t at = 0; at < ahead; at += 64) __builtin_prefetch(later + at);
    }
    widen(source.dtype, source.row(rows[i]), out.row(i), source.columns);
  }
}

}  // namespace shazam
