#pragma once

#include <cstdint>
#include <vector>

#include "store/dtype.h"

namespace shazam {

/// Widens `count` contiguous values to float32, exactly: subnormals, infinities and NaN payloads
/// included (a signalling float16 NaN becomes quiet, as IEEE 754 asks and F16C does).
/// Neither pointer has to be aligned.
void widen(DType dtype, const void* source, void* target, int64_t count);

/// True when none of the `count` contiguous values is NaN or infinite.
bool all_finite(DType dtype, const void* values, int64_t count);

struct HalfKernel {
  const char* name;
  void (*widen)(const void* source, void* target, int64_t count);
};

/// The float16 kernels this CPU can run, fastest first. The last one is portable.
const std::vector<HalfKernel>& half_kernels();

}  // namespace shazam
