// Sums over a sample: each block adds up one part of it, and one block per sample adds up the parts, always in the same
// order.
#pragma once

#include "cuda/launch.h"
#include "cuda/noise_task.h"

namespace fastdiff {
namespace {

template <int count>
struct Sums {
  double of[count][kReduceThreads];
};

// Adds up what each thread has in `shared`, into the place of the first one.
template <class Block>
FASTDIFF_INLINE void add_threads(const Block& block) {
  FASTDIFF_NO_UNROLL
  for (uint32_t width = kReduceThreads / 2; width > 0; width /= 2) {
    block.phase([&](uint32_t thread) {
      if (thread >= width) return;
      for (auto& sum : block.shared.of) sum[thread] += sum[thread + width];
    });
  }
}

// Adds up the sums that visit(thread, sums) makes of one part of a sample for each thread, into `partial`.
template <int count, class Block, class Visit>
FASTDIFF_INLINE void sum_part(double* partial, const Block& block, const Visit& visit) {
  block.phase([&](uint32_t thread) {
    double sums[count] = {};
    visit(thread, sums);
    for (int k = 0; k < count; ++k) block.shared.of[k][thread] = sums[k];
  });
  add_threads(block);
  block.phase([&](uint32_t thread) {
    if (thread < count) partial[thread] = block.shared.of[thread][0];
  });
}

// Adds up the parts of a sample, [parts, count] at `partial`, into `shared`.
template <int count, class Block>
FASTDIFF_INLINE void add_parts(const double* partial, int64_t parts, const Block& block) {
  block.phase([&](uint32_t thread) {
    for (int k = 0; k < count; ++k) {
      double sum = 0.0;
      for (int64_t part = thread; part < parts; part += kReduceThreads) sum += partial[part * count + k];
      block.shared.of[k][thread] = sum;
    }
  });
  add_threads(block);
}

// Calls visit(part, parts) for the parts of a sample that a block reduces.
template <class Block, class Visit>
FASTDIFF_INLINE void for_each_part(int64_t elements, const Block& block, const Visit& visit) {
  const int64_t parts = parts_of(elements);
  FASTDIFF_NO_UNROLL
  for (int64_t part = block.index; part < parts; part += block.count) visit(part, parts);
}

// Calls visit(vector) for the vectors of a thread in one part of a sample.
template <class Visit>
FASTDIFF_INLINE void for_part(int64_t part, uint32_t thread, uint32_t vectors, const Visit& visit) {
  constexpr uint32_t kVectors = kReducePart / 8;
  FASTDIFF_NO_UNROLL
  for (uint32_t k = thread; k < kVectors; k += kReduceThreads) {
    const uint32_t vector = static_cast<uint32_t>(part) * kVectors + k;
    if (vector < vectors) visit(vector);
  }
}

FASTDIFF_INLINE float lane(Four four, int i) {
  const float value[4] = {four.low.low, four.low.high, four.high.low, four.high.high};
  return value[i];
}

}  // namespace
}  // namespace fastdiff
