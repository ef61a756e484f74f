#pragma once

#include <cstdint>

#include "store/feature_store.h"

namespace shazam {

/// Copies rows[i] of `source`, which lie anywhere in it, to row i of `out`, widened to float32.
void take_rows(const Matrix& source, const int64_t* rows, int64_t count, const Matrix& out);

}  // namespace shazam
