// The kinds of numbers that tensors hold.
#pragma once

#include "common/portable.h"

namespace fastdiff {

enum class Float : uint8_t { float32, bfloat16, float16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTDIFF_INLINE constexpr int64_t size_of(Float kind) { return kind == Float::float32 ? 4 : 2; }

}  // namespace fastdiff
