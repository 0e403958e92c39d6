// Plain C++ for any machine: one float.
#pragma once

#include "common/floats.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/two.h"

namespace fastdiff {
namespace {

constexpr int kWidth = 1;
constexpr int kQuads = 1;
using Floats = float;
using Ints = uint32_t;
using Words = uint32_t;
constexpr int kChains = 2;
constexpr int kStepRegisters = 2;

FASTDIFF_INLINE Words consecutive(uint32_t first) { return first; }

// One quad is two pairs of words, and so of normals.
FASTDIFF_INLINE Two<uint32_t> alternate(Words a, Words b) { return {a, b}; }
FASTDIFF_INLINE void store_alternating(float* to, Two<float> first, Two<float> second) {
  to[0] = first.low;
  to[1] = second.low;
  to[2] = first.high;
  to[3] = second.high;
}

FASTDIFF_INLINE void load(const float* from, Floats& to) { to = *from; }
FASTDIFF_INLINE void load(const BFloat16* from, Floats& to) { to = from_bits(uint32_t{from->bits} << 16); }
FASTDIFF_INLINE void load(const Float16* from, Floats& to) {
  to = torch::headeronly::detail::fp16_ieee_to_fp32_value(from->bits);
}
FASTDIFF_INLINE void store(float* to, Floats from) { *to = from; }
FASTDIFF_INLINE void store(BFloat16* to, Floats from) {
  to->bits = torch::headeronly::detail::round_to_nearest_even(from);
}
FASTDIFF_INLINE void store(Float16* to, Floats from) {
  to->bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(from);
}
FASTDIFF_INLINE bool any_nan(Floats x) { return x != x; }

}  // namespace
}  // namespace fastdiff
