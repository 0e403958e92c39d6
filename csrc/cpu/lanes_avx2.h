// AVX2 with FMA and F16C: 8 floats.
#pragma once

#include "common/floats.h"

#include <immintrin.h>

namespace fastdiff {
namespace {

constexpr int kWidth = 8;
constexpr int kQuads = 4;
typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Ints __attribute__((vector_size(32)));
typedef uint64_t Words __attribute__((vector_size(32)));
constexpr int kChains = 4;
constexpr int kStepRegisters = 2;

template <>
struct Splat<Floats> {
  static FASTDIFF_INLINE Floats of(float value) { return _mm256_set1_ps(value); }
};
template <>
struct Splat<Words> {
  static FASTDIFF_INLINE Words of(uint64_t value) { return (Words)_mm256_set1_epi64x(value); }
};

FASTDIFF_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
FASTDIFF_INLINE Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }
FASTDIFF_INLINE Floats at_least(Floats x, Floats low) { return _mm256_max_ps(low, x); }
FASTDIFF_INLINE Floats at_most(Floats x, Floats high) { return _mm256_min_ps(high, x); }
FASTDIFF_INLINE Ints bits(Floats x) { return (Ints)x; }
FASTDIFF_INLINE Floats from_bits(Ints word) { return (Floats)word; }
FASTDIFF_INLINE Floats signed_to_float(Ints word) { return _mm256_cvtepi32_ps((__m256i)word); }
template <int count>
FASTDIFF_INLINE Ints arithmetic_shift_right(Ints word) {
  return (Ints)_mm256_srai_epi32((__m256i)word, count);
}
// blendv reads the sign bit alone, so the lowest bit goes there.
FASTDIFF_INLINE Floats select_odd(Ints word, Floats odd, Floats even) {
  return _mm256_blendv_ps(even, odd, (__m256)(word << 31));
}
FASTDIFF_INLINE Floats select_one(Floats x, Floats one, Floats other) {
  return _mm256_blendv_ps(other, one, _mm256_cmp_ps(x, _mm256_set1_ps(1.0f), _CMP_EQ_OQ));
}

FASTDIFF_INLINE Words wide_product(Words a, uint32_t b) {
  return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
}
FASTDIFF_INLINE Words high_word(Words product) { return product >> 32; }
FASTDIFF_INLINE Words low_word(Words product) { return product; }
FASTDIFF_INLINE Words xor3(Words a, Words b, Words c) { return a ^ b ^ c; }
FASTDIFF_INLINE Words consecutive(uint32_t first) { return Words{0, 1, 2, 3} + first; }

// Words `a` make elements 4q and 4q + 1 of kQuads quads, words `b` elements 4q + 2 and 4q + 3: pairs in their order.
FASTDIFF_INLINE Ints alternate(Words a, Words b) {
  return (Ints)_mm256_blend_epi32((__m256i)a, (__m256i)(b << 32), 0xAA);
}
FASTDIFF_INLINE void store_alternating(float* to, Floats first, Floats second) {
  const __m256 low = _mm256_unpacklo_ps(first, second), high = _mm256_unpackhi_ps(first, second);
  _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(to + kWidth, _mm256_permute2f128_ps(low, high, 0x31));
}

FASTDIFF_INLINE void load(const float* from, Floats& to) { to = _mm256_loadu_ps(from); }
FASTDIFF_INLINE void load(const BFloat16* from, Floats& to) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
  to = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
FASTDIFF_INLINE void load(const Float16* from, Floats& to) {
  to = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
FASTDIFF_INLINE void store(float* to, Floats from) { _mm256_storeu_ps(to, from); }
FASTDIFF_INLINE void store(BFloat16* to, Floats from) {
  const Ints word = bits(from);
  const __m256i rounded = (__m256i)((word + 0x7FFFu + (word >> 16 & 1u)) >> 16);
  const __m256i nan = (__m256i)_mm256_cmp_ps(from, from, _CMP_UNORD_Q);
  const __m256i halves = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
  _mm_storeu_si128((__m128i*)to, _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}
FASTDIFF_INLINE void store(Float16* to, Floats from) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(from, _MM_FROUND_TO_NEAREST_INT));
}
FASTDIFF_INLINE bool any_nan(Floats x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0; }

}  // namespace
}  // namespace fastdiff
