// AVX-512 (F, BW, DQ, VL): 16 floats.
#pragma once

#include "common/floats.h"

#include <immintrin.h>

namespace fastdiff {
namespace {

constexpr int kWidth = 16;
constexpr int kQuads = 8;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Ints __attribute__((vector_size(64)));
typedef uint64_t Words __attribute__((vector_size(64)));
constexpr int kChains = 4;
constexpr int kStepRegisters = 4;

template <>
struct Splat<Floats> {
  static FASTDIFF_INLINE Floats of(float value) { return _mm512_set1_ps(value); }
};
template <>
struct Splat<Words> {
  static FASTDIFF_INLINE Words of(uint64_t value) { return (Words)_mm512_set1_epi64(value); }
};

FASTDIFF_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
FASTDIFF_INLINE Floats square_root(Floats x) { return _mm512_sqrt_ps(x); }
FASTDIFF_INLINE Floats at_least(Floats x, Floats low) { return _mm512_max_ps(low, x); }
FASTDIFF_INLINE Floats at_most(Floats x, Floats high) { return _mm512_min_ps(high, x); }
FASTDIFF_INLINE Ints bits(Floats x) { return (Ints)x; }
FASTDIFF_INLINE Floats from_bits(Ints word) { return (Floats)word; }
FASTDIFF_INLINE Floats signed_to_float(Ints word) { return _mm512_cvtepi32_ps((__m512i)word); }
template <int count>
FASTDIFF_INLINE Ints arithmetic_shift_right(Ints word) {
  return (Ints)_mm512_srai_epi32((__m512i)word, count);
}
FASTDIFF_INLINE Floats select_odd(Ints word, Floats odd, Floats even) {
  return _mm512_mask_mov_ps(even, _mm512_test_epi32_mask((__m512i)word, _mm512_set1_epi32(1)), odd);
}
FASTDIFF_INLINE Floats select_one(Floats x, Floats one, Floats other) {
  return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(x, _mm512_set1_ps(1.0f), _CMP_EQ_OQ), one);
}

FASTDIFF_INLINE Words wide_product(Words a, uint32_t b) {
  return (Words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
}
FASTDIFF_INLINE Words high_word(Words product) { return product >> 32; }
FASTDIFF_INLINE Words low_word(Words product) { return product; }
FASTDIFF_INLINE Words xor3(Words a, Words b, Words c) {
  return (Words)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
}
FASTDIFF_INLINE Words consecutive(uint32_t first) { return Words{0, 1, 2, 3, 4, 5, 6, 7} + first; }

// Words `a` make elements 4q and 4q + 1 of kQuads quads, words `b` elements 4q + 2 and 4q + 3: pairs in their order.
FASTDIFF_INLINE Ints alternate(Words a, Words b) {
  return (Ints)_mm512_mask_shuffle_epi32((__m512i)a, 0xAAAA, (__m512i)b, _MM_PERM_CCAA);
}
FASTDIFF_INLINE void store_alternating(float* to, Floats first, Floats second) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  _mm512_storeu_ps(to, _mm512_permutex2var_ps(first, low, second));
  _mm512_storeu_ps(to + kWidth, _mm512_permutex2var_ps(first, high, second));
}

FASTDIFF_INLINE void load(const float* from, Floats& to) { to = _mm512_loadu_ps(from); }
FASTDIFF_INLINE void load(const BFloat16* from, Floats& to) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  to = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
FASTDIFF_INLINE void load(const Float16* from, Floats& to) {
  to = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
FASTDIFF_INLINE void store(float* to, Floats from) { _mm512_storeu_ps(to, from); }
FASTDIFF_INLINE void store(BFloat16* to, Floats from) {
  const Ints word = bits(from);
  const __m512i rounded = (__m512i)((word + 0x7FFFu + (word >> 16 & 1u)) >> 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(from, from, _CMP_UNORD_Q);
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(rounded, nan, 0x7FC0)));
}
FASTDIFF_INLINE void store(Float16* to, Floats from) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(from, _MM_FROUND_TO_NEAREST_INT));
}
FASTDIFF_INLINE bool any_nan(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }

}  // namespace
}  // namespace fastdiff
