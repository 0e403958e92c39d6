// The kernels that draw noise into a tensor, into clean data, or against a prediction.
#pragma once

#include "common/step.h"
#include "cuda/noise_lanes.h"
#include "cuda/reduce.h"

namespace fastdiff {
namespace {

FASTDIFF_INLINE NoiseKey key_of(const NoiseTask& task, int64_t sample) {
  return noise_key(task.seed[sample], task.sample[sample], static_cast<uint32_t>(task.draw[sample]), task.stream);
}

template <Storage storage>
FASTDIFF_INLINE Sample<storage> open(const NoiseTask& task, const Elements& tensor, int64_t sample) {
  return open<storage>(tensor, task.strides, sample, task.elements);
}

// A sample's row of the table. A GPU cannot refuse one that is not in it: it is NaN.
struct Mixture {
  float of_x0, of_noise;
};

FASTDIFF_INLINE Mixture mixture_of(const NoiseTask& task, int64_t sample) {
  const int64_t level = task.level[sample];
  const bool known = level >= 0 && level < task.levels;
  const float* row = task.table + (known ? level * task.row_stride : 0);
  return {known ? row[0] : __builtin_nanf(""), known ? row[task.column_stride] : __builtin_nanf("")};
}

FASTDIFF_INLINE Four float32(const Vector& z, int quad) { return z.widened(Float::float32, quad); }

FASTDIFF_INLINE Four mix(Mixture levels, const Vector& x0, Float kind, Four eps, int quad) {
  return q_sample(levels.of_x0, levels.of_noise, x0.widened(kind, quad), eps);
}

template <Storage storage>
FASTDIFF_INLINE void store(const Sample<storage>& to, uint32_t vector, const Four (&value)[2]) {
  Vector words;
  FASTDIFF_UNROLL
  for (int quad = 0; quad < 2; ++quad) words.narrow(to.kind, quad, value[quad]);
  to.store(vector, words);
}

// Bodies whose threads take vector after vector. `Each` is visited for them.
template <Storage storage, class Each>
struct VectorBody {
  using Task = NoiseTask;
  using Shared = Nothing;
  static constexpr int kThreads = 128, kBlocks = storage == Storage::any ? 4 : 10;  // 128 or 48 registers

  template <class Block>
  static FASTDIFF_INLINE void run(const NoiseTask& task, const Block& block) {
    block.each_thread([&](uint32_t thread) {
      uint32_t vector = block.index * kThreads + thread;
      if (vector >= task.vectors) return;
      const Each each(task, block.sample);
      FASTDIFF_NO_UNROLL
      do {
        each.visit(vector);
        vector += block.count * kThreads;
      } while (vector < task.vectors);
    });
  }
};

template <Storage storage>
struct DrawNormals {
  NoiseKey key;
  Sample<storage> z;

  FASTDIFF_INLINE DrawNormals(const NoiseTask& task, int64_t b)
      : key(keep(key_of(task, b))), z(open<storage>(task, task.written, b)) {}

  FASTDIFF_INLINE void visit(uint32_t vector) const {
    const Vector drawn = draw<2>(key, 2 * vector, false);
    store(z, vector, {float32(drawn, 0), float32(drawn, 1)});
  }
};

// `given`: the noise is read, not drawn.
template <Storage storage, bool given>
struct NoiseData {
  Mixture levels;
  NoiseKey key;
  Sample<storage> x0, noise, x_t, drawn;

  FASTDIFF_INLINE NoiseData(const NoiseTask& task, int64_t b)
      : levels(mixture_of(task, b)),
        x0(open<storage>(task, task.x0, b)),
        noise(open<storage>(task, task.noise, b)),
        x_t(open<storage>(task, task.written, b)),
        drawn(open<storage>(task, task.drawn, b)) {
    if (!given) key = keep(key_of(task, b));
  }

  FASTDIFF_INLINE void visit(uint32_t vector) const {
    const Vector clean = x0.load(vector);
    const Vector z = given ? noise.load(vector) : draw<2>(key, 2 * vector, false);
    const Four eps[2] = {float32(z, 0), float32(z, 1)};
    store(x_t, vector, {mix(levels, clean, x0.kind, eps[0], 0), mix(levels, clean, x0.kind, eps[1], 1)});
    if (drawn.data != nullptr) store(drawn, vector, eps);
  }
};

// The predictions of a sample less what they are compared with: where it is `mixed`, t0 x0 + te eps, else eps.
template <Storage storage, bool mixed>
struct Errors {
  Mixture levels;
  NoiseKey key;
  Sample<storage> pred, x0;

  FASTDIFF_INLINE Errors(const NoiseTask& task, int64_t b, const NoiseKey& key)
      : key(key), pred(open<storage>(task, task.pred, b)), x0(open<storage>(task, task.x0, b)) {
    if (mixed) levels = mixture_of(task, b);
  }

  // Some elements as they stand in memory.
  struct Loaded {
    Vector pred, noise, x0;
  };

  FASTDIFF_INLINE Loaded load(uint32_t vector) const {
    return {pred.load(vector), draw<2>(key, 2 * vector, false), mixed ? x0.load(vector) : Vector{}};
  }

  FASTDIFF_INLINE Four of(const Loaded& at, int quad) const {
    const Four eps = float32(at.noise, quad);
    return at.pred.widened(pred.kind, quad) - (mixed ? mix(levels, at.x0, x0.kind, eps, quad) : eps);
  }
};

template <Storage storage, bool mixed>
struct LossGradient {
  float scale;
  Errors<storage, mixed> errors;
  Sample<storage> grad;

  FASTDIFF_INLINE LossGradient(const NoiseTask& task, int64_t b)
      : scale(task.grad[b] * 2.0f / static_cast<float>(task.elements)),
        errors(task, b, keep(key_of(task, b))),
        grad(open<storage>(task, task.written, b)) {}

  FASTDIFF_INLINE void visit(uint32_t vector) const {
    const auto at = errors.load(vector);
    store(grad, vector, {scale * errors.of(at, 0), scale * errors.of(at, 1)});
  }
};

// The sum of the squares of errors over one part of a sample.
template <Storage storage, bool mixed>
struct LossPart {
  using Task = NoiseTask;
  using Shared = Sums<1>;
  // With x0 to be read too, 48 registers are too few on newer GPUs: 64.
  static constexpr int kThreads = kReduceThreads, kBlocks = storage == Storage::any ? 2 : mixed ? 4 : 5;

  template <class Block>
  static FASTDIFF_INLINE void run(const NoiseTask& task, const Block& block) {
    for_each_part(task.elements, block, [&](int64_t part, int64_t parts) { run(task, block, part, parts); });
  }

  template <class Block>
  static FASTDIFF_INLINE void run(const NoiseTask& task, const Block& block, int64_t part, int64_t parts) {
    sum_part<1>(task.partial + block.sample * parts + part, block, [&](uint32_t thread, double (&sums)[1]) {
      const Errors<storage, mixed> errors(task, block.sample, key_of(task, block.sample));
      for_part(part, thread, task.vectors, [&](uint32_t vector) {
        const auto at = errors.load(vector);
        const int64_t left = storage == Storage::any ? task.elements - int64_t{vector} * 8 : 8;
        FASTDIFF_UNROLL
        for (int i = 0; i < 8; ++i) {
          const double apart = lane(errors.of(at, i / 4), i % 4);
          if (i < left) sums[0] += apart * apart;
        }
      });
    });
  }
};

struct LossMean {
  using Task = NoiseTask;
  using Shared = Sums<1>;
  static constexpr int kThreads = kReduceThreads, kBlocks = 1;

  template <class Block>
  static FASTDIFF_INLINE void run(const NoiseTask& task, const Block& block) {
    const int64_t parts = parts_of(task.elements);
    add_parts<1>(task.partial + block.sample * parts, parts, block);
    block.phase([&](uint32_t thread) {
      if (thread != 0) return;
      task.loss[block.sample] = static_cast<float>(block.shared.of[0][0] / static_cast<double>(task.elements));
    });
  }
};

}  // namespace
}  // namespace fastdiff
