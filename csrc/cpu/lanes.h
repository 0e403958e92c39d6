// The lanes of one instruction set, chosen by what the including file is compiled for. Each part defines
//
//   Floats, Ints     kWidth floats, and as many 32-bit integers
//   Words            kQuads Philox words (in the low half of 64 bits; or just one)
//   kChains          how many of Words side by side make noise fastest
//   kStepRegisters   how many of Floats side by side a step takes at once
//
// and the operations of common/portable.h on them. Here stands what follows for any of them.
#pragma once

#include "common/portable.h"

// What a register can do must be declared before the templates that use it: the instruction set comes first.
#if defined(FASTDIFF_AVX512)
#include "cpu/lanes_avx512.h"
#elif defined(FASTDIFF_AVX2)
#include "cpu/lanes_avx2.h"
#else
#include "cpu/lanes_scalar.h"
#endif

#include "common/normal.h"
#include "common/philox.h"
#include "common/two.h"

namespace fastdiff {
namespace {

// How many registers and floats there are in lanes.
template <class L>
constexpr int kRegisters = 1;
template <class L>
constexpr int kRegisters<Two<L>> = 2 * kRegisters<L>;
template <class L>
constexpr int kFloats = kWidth * kRegisters<L>;

// `count` lanes side by side; a power of 2.
template <class L, int count>
struct SideBySide {
  using type = Two<typename SideBySide<L, count / 2>::type>;
};
template <class L>
struct SideBySide<L, 1> {
  using type = L;
};

template <class L>
struct Consecutive {
  static FASTDIFF_INLINE L from(uint32_t first) { return consecutive(first); }
};
template <class L>
struct Consecutive<Two<L>> {
  static FASTDIFF_INLINE Two<L> from(uint32_t first) {
    return {Consecutive<L>::from(first), Consecutive<L>::from(first + kQuads * kRegisters<L>)};
  }
};

template <class L>
FASTDIFF_INLINE auto alternate(Two<L> a, Two<L> b) {
  return Two<decltype(alternate(a.low, b.low))>{alternate(a.low, b.low), alternate(a.high, b.high)};
}

template <class L>
FASTDIFF_INLINE void store_alternating(float* to, Two<L> first, Two<L> second) {
  store_alternating(to, first.low, second.low);
  store_alternating(to + 2 * kFloats<L>, first.high, second.high);
}

// Draws normals for elements from `begin` on, while there is need for all of what the chains make at once.
template <int chains>
FASTDIFF_INLINE int draw_normals(const NoiseKey& key, uint32_t quad, int begin, int end, float* z) {
  using Lanes = typename SideBySide<Words, chains>::type;
  constexpr int kAtOnce = 4 * kQuads * chains;
  int element = begin;
  for (; element + kAtOnce <= end; element += kAtOnce) {
    const auto o = philox(key, Consecutive<Lanes>::from(quad + element / 4));
    const auto pair = normal_pair(alternate(o.word[0], o.word[2]), alternate(o.word[1], o.word[3]));
    store_alternating(z + element, pair.first, pair.second);
  }
  return element;
}

template <class T, class L>
FASTDIFF_INLINE void load(const T* from, Two<L>& to) {
  load(from, to.low);
  load(from + kFloats<L>, to.high);
}

template <class T, class L>
FASTDIFF_INLINE void store(T* to, Two<L> from) {
  store(to, from.low);
  store(to + kFloats<L>, from.high);
}

// For lanes that are 0 or NaN.
template <class L>
FASTDIFF_INLINE bool any_nan(Two<L> x) {
  return any_nan(x.low + x.high);
}

// Floats that start at an element of what `from` points to, widened exactly.
template <class L>
FASTDIFF_INLINE L load_floats(const void* from, Float kind, int element) {
  L to;
  if (kind == Float::float32) {
    load(static_cast<const float*>(from) + element, to);
  } else if (kind == Float::bfloat16) {
    load(static_cast<const BFloat16*>(from) + element, to);
  } else {
    load(static_cast<const Float16*>(from) + element, to);
  }
  return to;
}

// The other way, rounded to nearest even.
template <class L>
FASTDIFF_INLINE void store_floats(void* to, Float kind, int element, L from) {
  if (kind == Float::float32) {
    store(static_cast<float*>(to) + element, from);
  } else if (kind == Float::bfloat16) {
    store(static_cast<BFloat16*>(to) + element, from);
  } else {
    store(static_cast<Float16*>(to) + element, from);
  }
}

}  // namespace
}  // namespace fastdiff
