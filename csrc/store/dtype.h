#pragma once

#include <cstdint>
#include <string>

#include "store/store_error.h"

namespace shazam {

enum class DType { Float16, BFloat16, Float32 };

inline int64_t item_size(DType dtype) { return dtype == DType::Float32 ? 4 : 2; }

inline const char* name(DType dtype) {
  switch (dtype) {
    case DType::Float16: return "float16";
    case DType::BFloat16: return "bfloat16";
    case DType::Float32: break;
  }
  return "float32";
}

inline DType parse_dtype(const std::string& text) {
  for (DType dtype : {DType::Float16, DType::BFloat16, DType::Float32}) {
    if (text == name(dtype)) return dtype;
  }
  throw StoreError(ErrorKind::Dtype,
                   "unknown dtype '" + text + "': expected float16, bfloat16 or float32");
}

}  // namespace shazam
