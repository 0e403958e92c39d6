// The kernels that reduce a sample to numbers, from which follows what `step` reads like w.
#pragma once

#include "common/step.h"
#include "cuda/atomic.h"
#include "cuda/reduce.h"
#include "cuda/reduction_task.h"
#include "cuda/step_thread.h"

namespace fastdiff {
namespace {

// The loads of `guided` for one quad.
struct Outputs {
  Four out_, uncond_;

  FASTDIFF_INLINE Four out() const { return out_; }
  FASTDIFF_INLINE Four uncond() const { return uncond_; }
};

// The output of a network and what guidance makes of it, one element after another: visit(conditional, guided).
template <Storage storage, int... weights>
struct Guided {
  using Weights = Formula<set_of(GUIDED, weights...), 0>;
  Sample<storage> out, uncond;
  Row row;

  FASTDIFF_INLINE Guided(const OutputsTask& task, int64_t b, float w)
      : out(open<storage>(task.out, task.strides, b, task.elements)),
        uncond(open<storage>(task.uncond, task.strides, b, task.elements)) {
    row.w = w;
  }

  template <class Visit>
  FASTDIFF_INLINE void vector(uint32_t vector, int64_t count, const Visit& visit) const {
    const Vector c = out.load(vector), u = uncond.load(vector);
    FASTDIFF_UNROLL
    for (int quad = 0; quad < 2; ++quad) {
      const Outputs outputs = {c.widened(out.kind, quad), u.widened(uncond.kind, quad)};
      const Four g = guided<Four>(Weights{}, row, outputs);
      FASTDIFF_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (4 * quad + i < count) visit(lane(outputs.out_, i), lane(g, i));
      }
    }
  }
};

// Sums of deviations, and of their squares, from the first element of the sample: of the output and of the guided one.
template <Storage storage>
struct RescalePart {
  using Task = RescaleTask;
  using Shared = Sums<kRescaleSums>;
  static constexpr int kThreads = kReduceThreads, kBlocks = storage == Storage::any ? 2 : 5;

  template <class Block>
  static FASTDIFF_INLINE void run(const RescaleTask& task, const Block& block) {
    for_each_part(task.elements, block, [&](int64_t part, int64_t parts) { run(task, block, part, parts); });
  }

  template <class Block>
  static FASTDIFF_INLINE void run(const RescaleTask& task, const Block& block, int64_t part, int64_t parts) {
    double* const partial = task.partial + (block.sample * parts + part) * kRescaleSums;
    sum_part<kRescaleSums>(partial, block, [&](uint32_t thread, double (&sums)[kRescaleSums]) {
      const Guided<storage> at(task, block.sample, task.w[block.sample]);
      double first_c = 0.0, first_g = 0.0;
      at.vector(0, 1, [&](float conditional, float guided) {
        first_c = conditional;
        first_g = guided;
      });
      for_part(part, thread, task.vectors, [&](uint32_t vector) {
        at.vector(vector, task.elements - int64_t{vector} * 8, [&](float conditional, float guided) {
          const double of_c = conditional - first_c, of_g = guided - first_g;
          sums[0] += of_c;
          sums[1] += of_c * of_c;
          sums[2] += of_g;
          sums[3] += of_g * of_g;
        });
      });
    });
  }
};

// The sum of squared deviations from the mean, from that of deviations from somewhere.
FASTDIFF_INLINE double squares(double sum, double sum_of_squares, double count) {
  const double result = sum_of_squares - sum * sum / count;
  return result < 0.0 ? 0.0 : result;
}

struct RescaleFactor {
  using Task = RescaleTask;
  using Shared = Sums<kRescaleSums>;
  static constexpr int kThreads = kReduceThreads, kBlocks = 1;

  template <class Block>
  static FASTDIFF_INLINE void run(const RescaleTask& task, const Block& block) {
    const int64_t parts = parts_of(task.elements);
    add_parts<kRescaleSums>(task.partial + block.sample * parts * kRescaleSums, parts, block);
    block.phase([&](uint32_t thread) {
      if (thread != 0) return;
      const auto& sum = block.shared.of;
      const double count = static_cast<double>(task.elements);
      const double c = squares(sum[0][0], sum[1][0], count), g = squares(sum[2][0], sum[3][0], count);
      const double ratio = g == 0.0 ? 1.0 : __builtin_sqrt(c / g);
      task.factor[block.sample] = static_cast<float>(task.phi * ratio + (1.0 - task.phi));
    });
  }
};

// Sums of products of the output and of its difference from the unconditional one.
template <Storage storage>
struct ProductsPart {
  using Task = ProductsTask;
  using Shared = Sums<kProducts>;
  static constexpr int kThreads = kReduceThreads, kBlocks = storage == Storage::any ? 2 : 5;

  template <class Block>
  static FASTDIFF_INLINE void run(const ProductsTask& task, const Block& block) {
    for_each_part(task.elements, block, [&](int64_t part, int64_t parts) { run(task, block, part, parts); });
  }

  template <class Block>
  static FASTDIFF_INLINE void run(const ProductsTask& task, const Block& block, int64_t part, int64_t parts) {
    double* const partial = task.partial + (block.sample * parts + part) * kProducts;
    sum_part<kProducts>(partial, block, [&](uint32_t thread, double (&sums)[kProducts]) {
      Guided<storage, WEIGHTED> at(task, block.sample, 1.0f);
      at.row.w_uncond = -1.0f;
      for_part(part, thread, task.vectors, [&](uint32_t vector) {
        at.vector(vector, task.elements - int64_t{vector} * 8, [&](float conditional, float difference) {
          const double c = conditional, apart = difference;
          sums[0] += c * c;
          sums[1] += c * apart;
          sums[2] += apart * apart;
        });
      });
    });
  }
};

struct Products {
  using Task = ProductsTask;
  using Shared = Sums<kProducts>;
  static constexpr int kThreads = kReduceThreads, kBlocks = 1;

  template <class Block>
  static FASTDIFF_INLINE void run(const ProductsTask& task, const Block& block) {
    const int64_t parts = parts_of(task.elements);
    add_parts<kProducts>(task.partial + block.sample * parts * kProducts, parts, block);
    block.phase([&](uint32_t thread) {
      if (thread >= kProducts) return;
      task.products[thread * task.samples + block.sample] = static_cast<float>(block.shared.of[thread][0]);
    });
  }
};

// Calls visit(word) for the bits of |x0| of the elements of a vector; they are ordered as the values are.
template <Storage storage, class Set>
struct AbsoluteX0 {
  Set uses;
  Row row;
  Sample<storage> x, out, uncond;

  FASTDIFF_INLINE AbsoluteX0(const StepTask& task, int64_t b)
      : uses{task.uses},
        row(read_row(task, Set{task.layout}, uses, b)),
        x(open<storage>(task.x, task.strides, b, task.elements)),
        out(open<storage>(task.out, task.strides, b, task.elements)),
        uncond(open<storage>(task.uncond, task.strides, b, task.elements)) {}

  template <class Visit>
  FASTDIFF_INLINE void vector(uint32_t vector, const Visit& visit) const {
    const Vector state = x.load(vector), c = out.load(vector);
    Vector u = c;
    if (uses.has(GUIDED)) u = uncond.load(vector);
    const int64_t left = x.elements - int64_t{vector} * 8;
    FASTDIFF_UNROLL
    for (int quad = 0; quad < 2; ++quad) {
      const Outputs outputs = {c.widened(out.kind, quad), u.widened(uncond.kind, quad)};
      const Four x0 = predict_x0(uses, row, state.widened(Float::float32, quad), guided<Four>(uses, row, outputs));
      FASTDIFF_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (4 * quad + i < left) visit(bits(lane(x0, i)) & 0x7FFFFFFFu);
      }
    }
  }

  template <class Block, class Visit>
  FASTDIFF_INLINE void each(const Block& block, uint32_t thread, uint32_t vectors, const Visit& visit) const {
    FASTDIFF_NO_UNROLL
    for (uint32_t v = block.index * kReduceThreads + thread; v < vectors; v += block.count * kReduceThreads) {
      vector(v, visit);
    }
  }
};

struct Counts {
  uint32_t of[kDigitValues];
};

// Counts each value of a digit among the values that have the digits so far.
template <Storage storage, class Set>
struct CountDigit {
  using Task = ThresholdTask;
  using Shared = Counts;
  static constexpr int kThreads = kReduceThreads, kBlocks = storage == Storage::any ? 2 : 5;

  template <class Block>
  static FASTDIFF_INLINE void run(const ThresholdTask& task, const Block& block) {
    uint32_t* const counts = block.shared.of;
    block.phase([&](uint32_t thread) {
      for (uint32_t k = thread; k < kDigitValues; k += kReduceThreads) counts[k] = 0;
    });
    block.phase([&](uint32_t thread) {
      const uint32_t word = task.search[block.sample].word;
      const int above = task.shift + task.width;  // 31 at most
      const uint32_t digit = (1u << task.width) - 1;
      AbsoluteX0<storage, Set>(task.step, block.sample).each(block, thread, task.step.vectors, [&](uint32_t value) {
        if ((value ^ word) >> above == 0) atomic_add(&counts[value >> task.shift & digit], 1u);
      });
    });
    block.phase([&](uint32_t thread) {
      uint64_t* const to = task.counts + block.sample * kDigitValues;
      for (uint32_t k = thread; k < kDigitValues; k += kReduceThreads) {
        if (counts[k] != 0) atomic_add(&to[k], static_cast<uint64_t>(counts[k]));
      }
    });
  }
};

struct Totals {
  int64_t of[kReduceThreads];
};

FASTDIFF_INLINE int64_t rank_of(const ThresholdTask& task) {
  return static_cast<int64_t>(task.quantile * static_cast<double>(task.step.elements - 1));
}

// Chooses the value of the digit that the order statistic has, and makes the counts 0 again.
struct ChooseDigit {
  using Task = ThresholdTask;
  using Shared = Totals;
  static constexpr int kThreads = kReduceThreads, kBlocks = 1;

  template <class Block>
  static FASTDIFF_INLINE void run(const ThresholdTask& task, const Block& block) {
    constexpr int kEach = kDigitValues / kReduceThreads;
    uint64_t* const counts = task.counts + block.sample * kDigitValues;
    block.phase([&](uint32_t thread) {
      int64_t total = 0;
      for (int k = 0; k < kEach; ++k) total += counts[thread * kEach + k];
      block.shared.of[thread] = total;
    });
    block.phase([&](uint32_t thread) {
      if (thread != 0) return;
      Search& search = task.search[block.sample];
      const int64_t rank = rank_of(task);
      int64_t smaller = search.smaller;
      uint32_t group = 0;
      while (smaller + block.shared.of[group] <= rank) smaller += block.shared.of[group++];
      uint32_t chosen = group * kEach;
      while (smaller + static_cast<int64_t>(counts[chosen]) <= rank) smaller += counts[chosen++];
      search.smaller = smaller;
      search.equal = counts[chosen];
      search.word |= chosen << task.shift;
      search.greater = 0xFFFFFFFFu;
    });
    block.phase([&](uint32_t thread) {
      for (int k = 0; k < kEach; ++k) counts[thread * kEach + k] = 0;
    });
  }
};

// Whether the next order statistic has another value.
FASTDIFF_INLINE bool next_is_greater(const ThresholdTask& task, const Search& search) {
  return rank_of(task) + 1 >= search.smaller + search.equal;
}

template <Storage storage, class Set>
struct FindGreater {
  using Task = ThresholdTask;
  using Shared = Nothing;
  static constexpr int kThreads = kReduceThreads, kBlocks = storage == Storage::any ? 2 : 5;

  template <class Block>
  static FASTDIFF_INLINE void run(const ThresholdTask& task, const Block& block) {
    block.each_thread([&](uint32_t thread) {
      Search& search = task.search[block.sample];
      if (!next_is_greater(task, search)) return;
      const uint32_t word = search.word;
      uint32_t least = 0xFFFFFFFFu;
      AbsoluteX0<storage, Set>(task.step, block.sample).each(block, thread, task.step.vectors, [&](uint32_t value) {
        if (value > word && value < least) least = value;
      });
      if (least != 0xFFFFFFFFu) atomic_min(&search.greater, least);
    });
  }
};

struct Interpolate {
  using Task = ThresholdTask;
  using Shared = Nothing;
  static constexpr int kThreads = 32, kBlocks = 1;

  template <class Block>
  static FASTDIFF_INLINE void run(const ThresholdTask& task, const Block& block) {
    block.each_thread([&](uint32_t thread) {
      if (thread != 0) return;
      const Search& search = task.search[block.sample];
      const double above =
          task.quantile * static_cast<double>(task.step.elements - 1) - static_cast<double>(rank_of(task));
      const double low = from_bits(search.word);
      const double high = next_is_greater(task, search) ? from_bits(search.greater) : from_bits(search.word);
      task.threshold[block.sample] = static_cast<float>(above == 0.0 ? low : low + (high - low) * above);
    });
  }
};

}  // namespace
}  // namespace fastdiff
