// The exact Box-Muller normals of docs/noise.md: two words of Philox make two standard normals.
#pragma once

#include "common/portable.h"

namespace fastdiff {
namespace {

// sum_k coefficient[k] x^k by Horner's rule, each step one fma.
template <class F, int terms>
FASTDIFF_INLINE F polynomial(const float (&coefficient)[terms], F x) {
  F p = splat<F>(coefficient[terms - 1]);
  FASTDIFF_UNROLL
  for (int k = terms - 2; k >= 0; --k) p = fma(p, x, splat<F>(coefficient[k]));
  return p;
}

template <class F>
struct Pair {
  F first, second;
};

template <class Ints>
FASTDIFF_INLINE auto normal_pair(Ints a, Ints b) {
  using F = decltype(signed_to_float(a));
  constexpr float kLog[] = {
      -2.0f,
      0.9999997615814209f,
      -0.6666837334632874f,
      0.5000414848327637f,
      -0.39913666248321533f,
      0.33124786615371704f,
      -0.2990453541278839f,
      0.2873367965221405f,
      -0.1744469851255417f,
  };
  constexpr float kSin[] = {0.7853981852531433f, -0.08074543625116348f, 0.00249000103212893f, -3.5950448364019394e-05f};
  constexpr float kCos[] = {0.9999999403953552f, -0.308424174785614f, 0.015849683433771133f, -0.0003187278052791953f};
  constexpr float kMinus2Log2 = -1.3862943611198906f;

  // u in (0, 2^31] is m 2^e with m in [0.707, 1.414); -2 log(u / 2^31) = -2 log(m) - 2 log(2) (e - 31). The exponent
  // stays where it stands in a float: 2^23 (e - 31) is as exact as e - 31.
  const F u = signed_to_float((a >> 1) | 1u);
  const Ints exponent = (bits(u) - (0x3F3504F3u + (31u << 23))) & 0xFF800000u;
  const F f = from_bits(bits(u) - (31u << 23) - exponent) - 1.0f;
  const F radius =
      square_root(fma(signed_to_float(exponent), splat<F>(kMinus2Log2 * 0x1p-23f), polynomial(kLog, f) * f));

  // The angle is t pi / 4 in one of four quadrants: the low bits of b negate the cosine and swap it with the sine.
  const F t = signed_to_float(b) * 0x1p-31f;
  const F t2 = t * t;
  const F sine = polynomial(kSin, t2) * t;
  const F cosine = from_bits(bits(polynomial(kCos, t2)) ^ ((b & 2u) << 30));
  return Pair<F>{radius * select_odd(b, sine, cosine), radius * select_odd(b, cosine, sine)};
}

}  // namespace
}  // namespace fastdiff
