// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011), as docs/noise.md keys and counts it.
#pragma once

#include "common/noise_key.h"

namespace fastdiff {
namespace {

// The four output words of one quad of elements, or of one quad in each lane.
template <class Words>
struct Quad {
  Words word[4];
};

template <class Words>
FASTDIFF_INLINE Quad<Words> philox(const NoiseKey& key, Words quad) {
  Words c0 = quad;
  Words c1 = splat<Words>(key.draw);
  Words c2 = splat<Words>(key.sample_low);
  Words c3 = splat<Words>(key.stream_and_sample_high);
  FASTDIFF_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const auto product0 = wide_product(c0, 0xD2511F53u);
    const auto product1 = wide_product(c2, 0xCD9E8D57u);
    c0 = xor3(high_word(product1), c1, splat<Words>(key.key0[round]));
    c1 = low_word(product1);
    c2 = xor3(high_word(product0), c3, splat<Words>(key.key1[round]));
    c3 = low_word(product0);
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace
}  // namespace fastdiff
