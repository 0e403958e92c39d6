// Two lanes side by side, and by nesting four, eight, ...: independent chains of arithmetic that hide each other's
// latency.
#pragma once

#include "common/portable.h"

namespace fastdiff {
namespace {

template <class L>
struct Two {
  L low, high;
};

template <class L>
struct Splat<Two<L>> {
  template <class Number>
  static FASTDIFF_INLINE Two<L> of(Number value) {
    return {splat<L>(value), splat<L>(value)};
  }
};

#define FASTDIFF_OPERATOR(op)                              \
  template <class L>                                       \
  FASTDIFF_INLINE Two<L> operator op(Two<L> a, Two<L> b) { \
    return {a.low op b.low, a.high op b.high};             \
  }                                                        \
  template <class L, class Number>                         \
  FASTDIFF_INLINE Two<L> operator op(Two<L> a, Number b) { \
    return {a.low op b, a.high op b};                      \
  }
FASTDIFF_OPERATOR(+)
FASTDIFF_OPERATOR(-)
FASTDIFF_OPERATOR(*)
FASTDIFF_OPERATOR(&)
FASTDIFF_OPERATOR(|)
FASTDIFF_OPERATOR(^)
FASTDIFF_OPERATOR(<<)
FASTDIFF_OPERATOR(>>)
#undef FASTDIFF_OPERATOR

template <class L>
FASTDIFF_INLINE Two<L> operator*(float a, Two<L> b) {
  return {a * b.low, a * b.high};
}

#define FASTDIFF_UNARY(name)                                          \
  template <class L>                                                  \
  FASTDIFF_INLINE auto name(Two<L> a) -> Two<decltype(name(a.low))> { \
    return {name(a.low), name(a.high)};                               \
  }
FASTDIFF_UNARY(square_root)
FASTDIFF_UNARY(bits)
FASTDIFF_UNARY(from_bits)
FASTDIFF_UNARY(signed_to_float)
FASTDIFF_UNARY(high_word)
FASTDIFF_UNARY(low_word)
#undef FASTDIFF_UNARY

template <int count, class L>
FASTDIFF_INLINE Two<L> arithmetic_shift_right(Two<L> a) {
  return {arithmetic_shift_right<count>(a.low), arithmetic_shift_right<count>(a.high)};
}

template <class L>
FASTDIFF_INLINE Two<L> at_least(Two<L> a, Two<L> low) {
  return {at_least(a.low, low.low), at_least(a.high, low.high)};
}

template <class L>
FASTDIFF_INLINE Two<L> at_most(Two<L> a, Two<L> high) {
  return {at_most(a.low, high.low), at_most(a.high, high.high)};
}

template <class L>
FASTDIFF_INLINE Two<L> fma(Two<L> a, Two<L> b, Two<L> c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}

template <class I, class L>
FASTDIFF_INLINE Two<L> select_odd(Two<I> word, Two<L> odd, Two<L> even) {
  return {select_odd(word.low, odd.low, even.low), select_odd(word.high, odd.high, even.high)};
}

template <class L>
FASTDIFF_INLINE Two<L> select_one(Two<L> x, Two<L> one, Two<L> other) {
  return {select_one(x.low, one.low, other.low), select_one(x.high, one.high, other.high)};
}

template <class L>
FASTDIFF_INLINE auto wide_product(Two<L> a, uint32_t b) -> Two<decltype(wide_product(a.low, b))> {
  return {wide_product(a.low, b), wide_product(a.high, b)};
}

template <class L>
FASTDIFF_INLINE Two<L> xor3(Two<L> a, Two<L> b, Two<L> c) {
  return {xor3(a.low, b.low, c.low), xor3(a.high, b.high, c.high)};
}

}  // namespace
}  // namespace fastdiff
