// The normals of a vector of elements.
#pragma once

#include "common/normal.h"
#include "common/philox.h"
#include "cuda/elements.h"

namespace fastdiff {
namespace {

enum class Normals { none, exact, fast };

// A key whose schedule is found once: as all threads of a block share it, it stands in uniform registers.
FASTDIFF_INLINE NoiseKey keep(NoiseKey key) {
  FASTDIFF_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    key.key0[round] = keep(static_cast<uint32_t>(key.key0[round]));
    key.key1[round] = keep(static_cast<uint32_t>(key.key1[round]));
  }
  key.stream_and_sample_high = keep(key.stream_and_sample_high);
  return key;
}

#if defined(__CUDACC__)
FASTDIFF_INLINE float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FASTDIFF_INLINE float fast_square_root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FASTDIFF_INLINE float fast_sine(float x) { return __sinf(x); }
FASTDIFF_INLINE float fast_cosine(float x) { return __cosf(x); }
#else
inline float fast_log2(float x) { return __builtin_log2f(x); }
inline float fast_square_root(float x) { return __builtin_sqrtf(x); }
inline float fast_sine(float x) { return __builtin_sinf(x); }
inline float fast_cosine(float x) { return __builtin_cosf(x); }
#endif

// Two standard normals from two words by the functions of the hardware: statistically those of normal_pair, not to the
// bit. The magnitude keeps the square root from a logarithm that was rounded across 0.
FASTDIFF_INLINE Pair<float> fast_normal_pair(uint32_t a, uint32_t b) {
  const float u = fma(static_cast<float>(a), 0x1p-32f, 0x1p-33f);
  const float radius = fast_square_root(__builtin_fabsf(-1.3862943611198906f * fast_log2(u)));
  const float angle = signed_to_float(b) * (3.14159265358979f * 0x1p-31f);
  return {radius * fast_cosine(angle), radius * fast_sine(angle)};
}

// The normals of a quad as float32 words.
FASTDIFF_INLINE void put_normals(const uint32_t (&o)[4], bool fast, Line& z) {
  FASTDIFF_UNROLL
  for (int k = 0; k < 4; k += 2) {
    const Pair<float> pair = fast ? fast_normal_pair(o[k], o[k + 1]) : normal_pair(o[k], o[k + 1]);
    z.word[k] = bits(pair.first);
    z.word[k + 1] = bits(pair.second);
  }
}

// The normals of one or two quads, side by side: they share the schedule of the key.
template <int quads>
FASTDIFF_INLINE Vector draw(const NoiseKey& key, uint32_t quad, bool fast) {
  Vector z;
  if constexpr (quads == 1) {
    put_normals(philox(key, quad).word, fast, z.line[0]);
  } else {
    const auto o = philox(key, Two<uint32_t>{quad, quad + 1});
    put_normals({o.word[0].low, o.word[1].low, o.word[2].low, o.word[3].low}, fast, z.line[0]);
    put_normals({o.word[0].high, o.word[1].high, o.word[2].high, o.word[3].high}, fast, z.line[1]);
  }
  return z;
}

}  // namespace
}  // namespace fastdiff
