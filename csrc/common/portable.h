// What host and device code share: markers for the compiler, and one float as the smallest kind of lanes.
//
// philox.h, normal.h and step.h are written once over "lanes": a float here, a SIMD register in cpu/lanes.h, several
// registers in two.h. Everything stands in an unnamed namespace, because each instruction set compiles these
// headers for itself and the linker must not merge the results.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTDIFF_INLINE __device__ __forceinline__
#define FASTDIFF_NO_INLINE [[maybe_unused]] static __device__ __noinline__
#define FASTDIFF_HOST_DEVICE __host__ __device__
#else
#define FASTDIFF_INLINE inline __attribute__((always_inline))
#define FASTDIFF_NO_INLINE [[maybe_unused]] static __attribute__((noinline))
#define FASTDIFF_HOST_DEVICE
#endif

// Stands before a short loop whose count the compiler knows.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define FASTDIFF_UNROLL _Pragma("GCC unroll 16")
#else
#define FASTDIFF_UNROLL _Pragma("unroll")
#endif

#if defined(__CUDACC__)
#define FASTDIFF_NO_UNROLL _Pragma("unroll 1")
#else
#define FASTDIFF_NO_UNROLL
#endif

namespace fastdiff {
namespace {

// The same number in every lane.
template <class L>
struct Splat {
  template <class Number>
  static FASTDIFF_INLINE L of(Number value) {
    return static_cast<L>(value);
  }
};
template <class L, class Number>
FASTDIFF_INLINE L splat(Number value) {
  return Splat<L>::of(value);
}

#if defined(__CUDACC__)
FASTDIFF_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// Correctly rounded for the arguments that normals have, -0, 0 and [1e-7, 45]: the path that sqrt.rn takes for them,
// without its tests for others.
FASTDIFF_INLINE float square_root(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 1e-30f)));
  const float root = x * inverse;
  return fma(fma(-root, root, x), 0.5f * inverse, root);
}

// NaN stays NaN. They differ from the host's for zeros of two signs, which no bound but -0 tells apart.
FASTDIFF_INLINE float at_least(float x, float low) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(low));
  return larger;
}
FASTDIFF_INLINE float at_most(float x, float high) {
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(x), "f"(high));
  return smaller;
}
// The larger number; NaN if either is.
FASTDIFF_INLINE float larger(float a, float b) { return at_least(a, b); }
#else
FASTDIFF_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FASTDIFF_INLINE float square_root(float x) { return __builtin_sqrtf(x); }

// `x < low ? low : x` and `x > high ? high : x`: NaN stays NaN.
FASTDIFF_INLINE float at_least(float x, float low) { return x < low ? low : x; }
FASTDIFF_INLINE float at_most(float x, float high) { return x > high ? high : x; }
FASTDIFF_INLINE float larger(float a, float b) { return a < b || b != b ? b : a; }
#endif

FASTDIFF_INLINE uint32_t bits(float x) {
  union {
    float number;
    uint32_t word;
  } both = {x};
  return both.word;
}

FASTDIFF_INLINE float from_bits(uint32_t word) {
  union {
    uint32_t word;
    float number;
  } both = {word};
  return both.number;
}

FASTDIFF_INLINE float signed_to_float(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

template <int count>
FASTDIFF_INLINE uint32_t arithmetic_shift_right(uint32_t word) {
  return static_cast<uint32_t>(static_cast<int32_t>(word) >> count);
}

FASTDIFF_INLINE float select_odd(uint32_t word, float odd, float even) { return word & 1u ? odd : even; }
FASTDIFF_INLINE float select_one(float x, float one, float other) { return x == 1.0f ? one : other; }

#if defined(__CUDACC__)
// One multiplication. The compiler does not see that the words belong together, or it would test bits of both.
struct WideProduct {
  uint32_t low, high;
};
FASTDIFF_INLINE WideProduct wide_product(uint32_t a, uint32_t b) {
  WideProduct product;
  asm("{ .reg .b64 both; mul.wide.u32 both, %2, %3; mov.b64 {%0, %1}, both; }"
      : "=r"(product.low), "=r"(product.high)
      : "r"(a), "r"(b));
  return product;
}
FASTDIFF_INLINE uint32_t high_word(WideProduct product) { return product.high; }
FASTDIFF_INLINE uint32_t low_word(WideProduct product) { return product.low; }
#else
FASTDIFF_INLINE uint64_t wide_product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
FASTDIFF_INLINE uint32_t high_word(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
FASTDIFF_INLINE uint32_t low_word(uint64_t product) { return static_cast<uint32_t>(product); }
#endif
FASTDIFF_INLINE uint32_t xor3(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }

}  // namespace
}  // namespace fastdiff
