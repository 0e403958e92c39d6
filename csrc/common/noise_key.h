// Whose noise is drawn: the key of Philox and the words of its counter that do not depend on the element.
#pragma once

#include "common/portable.h"

namespace fastdiff {

constexpr int kRounds = 10;

// The stream of sampling noise; its draw is the row of the plan.
constexpr uint32_t kStepStream = 1;

// The part of key and counter that all elements of one sample share.
struct NoiseKey {
  uint64_t key0[kRounds];  // 32-bit words, at the width in which SIMD lanes read them from memory
  uint64_t key1[kRounds];
  uint32_t draw;
  uint32_t sample_low;
  uint32_t stream_and_sample_high;
};

FASTDIFF_INLINE NoiseKey noise_key(uint64_t seed, uint64_t sample, uint32_t draw, uint32_t stream) {
  NoiseKey key;
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    key.key0[round] = key0;
    key.key1[round] = key1;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  key.draw = draw;
  key.sample_low = static_cast<uint32_t>(sample);
  key.stream_and_sample_high = stream << 24 | (static_cast<uint32_t>(sample >> 32) & 0xFFFFFFu);
  return key;
}

}  // namespace fastdiff
