// How a call is shared among threads: each gets consecutive elements of consecutive samples, in whole blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include <torch/csrc/stable/ops.h>

#include "cpu/kernels.h"

#if defined(FASTDIFF_STD_THREADS)
#include <thread>
#include <vector>
#endif

namespace fastdiff {

// Least elements that are worth a thread: about ten microseconds of work.
constexpr int64_t kGrain = 32768;
constexpr int64_t kNoiseGrain = 16384;

// Elements that are reduced to one number first: a fixed size, so that no sum depends on the threads.
constexpr int64_t kPart = 8 * kBlock;
inline int64_t parts_of(int64_t elements) { return (elements + kPart - 1) / kPart; }

#if defined(FASTDIFF_STD_THREADS)
// ThreadSanitizer does not know the threads of torch, which are OpenMP's; it knows these.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t share = std::max(grain, (end - begin + 1) / 2);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += share) {
    threads.emplace_back([&f, first, last = std::min(end, first + share)] { f(first, last); });
  }
  for (std::thread& thread : threads) thread.join();
}
#else
using torch::stable::parallel_for;
#endif

// Calls visit(Range) for ranges that together make `samples` samples of `elements` elements. A range is at most
// `longest` elements long; it begins at a multiple of it, or of kBlock where `longest` is 0: no limit.
template <class Visit>
void for_each_range(int64_t samples, int64_t elements, int64_t grain, const Visit& visit, int64_t longest = 0) {
  const int64_t unit = longest ? longest : kBlock;
  const int64_t units = (elements + unit - 1) / unit;
  const auto run = [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t sample = first / units;
      const int64_t in_sample = first % units;
      const int64_t count = longest ? 1 : std::min(units - in_sample, last - first);
      visit(Range{sample, in_sample * unit, std::min((in_sample + count) * unit, elements)});
      first += count;
    }
  };
  const int64_t grain_units = std::max<int64_t>(1, grain / unit);
  if (samples * units <= grain_units) {
    run(0, samples * units);
  } else {
    parallel_for(0, samples * units, grain_units, run);
  }
}

}  // namespace fastdiff
