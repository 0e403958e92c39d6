// What one thread of a step does: vectors of one sample, one after another.
#pragma once

#include <type_traits>

#include "common/formulas.h"
#include "common/step.h"
#include "cuda/atomic.h"
#include "cuda/noise_lanes.h"
#include "cuda/step_task.h"

namespace fastdiff {
namespace {

// What a sample has whose row is not in the table: its results are NaN.
#if defined(__CUDACC__)
__device__
#endif
    const float kNoRow[COLUMNS] = {
#define FASTDIFF_NAN4 __builtin_nanf(""), __builtin_nanf(""), __builtin_nanf(""), __builtin_nanf("")
        FASTDIFF_NAN4, FASTDIFF_NAN4, FASTDIFF_NAN4, FASTDIFF_NAN4,
        FASTDIFF_NAN4, FASTDIFF_NAN4, FASTDIFF_NAN4, __builtin_nanf(""),
#undef FASTDIFF_NAN4
};

// The coefficients of a sample. `layout` is the set of columns in the table, in whole or as the kernel knows it.
template <class Layout, class Uses>
FASTDIFF_INLINE Row read_row(const StepTask& task, const Layout& layout, const Uses& uses, int64_t sample) {
  const int64_t index = task.row[sample];
  const bool known = index >= 0 && index < task.rows;
  const float* row = known ? task.table + index * task.row_stride : kNoRow;
  Row result;
  if (uses.has(SCALE_IN)) result.next_scale_in = row[known && index + 1 < task.rows ? task.row_stride : 0];
  int position = 0;
  FASTDIFF_UNROLL
  for (int column = 0; column < COLUMNS; ++column) {
    if (layout.has(column)) result.c[column] = row[position++];
  }
  if (!layout.has(DY)) result.c[DY] = 1.0f;
  if (uses.has(GUIDED)) result.w = task.w[sample];
  if (uses.has(WEIGHTED)) result.w_uncond = task.w_uncond[sample];
  if (uses.has(SCALED)) result.scale = task.scale[sample];
  if (uses.has(THRESHOLDED)) {
    const float clip = result.c[CLIP], threshold = task.threshold[sample];
    const float bound = threshold > clip ? threshold : clip;
    result.c[CLIP] = bound;
    result.clip_ratio = bound == clip ? 1.0f : clip / bound;
  }
  return result;
}

FASTDIFF_INLINE float largest(float seen, float value) { return larger(__builtin_fabsf(value), seen); }
template <class L>
FASTDIFF_INLINE float largest(float seen, Two<L> lanes) {
  return largest(largest(seen, lanes.low), lanes.high);
}

// The largest magnitudes that a thread has seen; NaN where it saw one.
struct Peaks {
  float out = 0.0f, state = 0.0f;
};

FASTDIFF_INLINE bool finite(float peak) { return peak <= 3.4028234663852886e38f; }

// One sample of the tensors in use.
template <Storage storage>
struct StepSample {
  using S = Sample<storage>;
  S x, out, uncond, variance, y, z, x0_out, model_input, known, mask, history[kHistorySlots];
  int32_t branches;
  int64_t branch_stride, history_stride;
  int history_slots;

  FASTDIFF_INLINE StepSample(const StepTask& task, int64_t b) {
    const auto network = [&](const Elements& tensor) { return open<storage>(tensor, task.strides, b, task.elements); };
    const auto state = [&](const Elements& tensor) {
      return open_state<storage>(tensor, task.strides, b, task.elements);
    };
    x = state(task.x);
    out = network(task.out);
    uncond = network(task.uncond);
    variance = network(task.variance);
    y = state(task.y);
    x0_out = state(task.x0_out);
    z = state(task.z);
    known = state(task.known);
    mask = state(task.mask);
    model_input = network(task.model_input);
    FASTDIFF_UNROLL
    for (int k = 0; k < kHistorySlots; ++k) history[k] = state(task.history[k]);
    branches = task.branches;
    branch_stride = task.branch_stride;
    history_slots = task.history_slots;
    history_stride = task.history_stride;
  }
};

// What a thread has loaded and drawn of one vector.
template <Storage storage, Normals noise>
struct StepVector {
  Vector x, out, uncond, variance, y, z, known, mask, history[kHistorySlots];

  template <class Uses>
  FASTDIFF_INLINE StepVector(const StepSample<storage>& at, const Uses& uses, bool guided, const NoiseKey& key,
                             uint32_t vector) {
    x = at.x.load(vector);
    out = at.out.load(vector);
    if (guided) uncond = at.uncond.load(vector);
    if (uses.has(CV)) variance = at.variance.load(vector);
    if (uses.has(CY) || uses.has(DY)) y = at.y.load(vector);
    FASTDIFF_UNROLL
    for (int k = 0; k < kHistorySlots; ++k) {
      if (uses.has(CH0 + k) || uses.has(DH0 + k)) history[k] = at.history[k].load(vector);
    }
    if (uses.has(K0)) known = at.known.load(vector);
    if (inpaints(uses)) mask = at.mask.load(vector);
    if constexpr (noise != Normals::none) {
      constexpr int kQuads = kVector<storage> / 4;
      z = draw<kQuads>(key, vector * kQuads, noise == Normals::fast);
    } else if (draws_noise(uses)) {
      z = at.z.load(vector);
    }
  }
};

// The lanes of a step: the elements of one vector.
template <Storage storage>
using Lanes = std::conditional_t<kVector<storage> == 8, Two<Four>, Four>;

FASTDIFF_INLINE void widen(const Vector& from, Float kind, Four& to) { to = from.widened(kind, 0); }
FASTDIFF_INLINE void widen(const Vector& from, Float kind, Two<Four>& to) {
  to = {from.widened(kind, 0), from.widened(kind, 1)};
}
FASTDIFF_INLINE void narrow(Four from, Float kind, Vector& to) { to.narrow(kind, 0, from); }
FASTDIFF_INLINE void narrow(Two<Four> from, Float kind, Vector& to) {
  to.narrow(kind, 0, from.low);
  to.narrow(kind, 1, from.high);
}

// The loads and stores of common/step.h for one vector.
template <Storage storage, Normals noise>
struct StepLanes {
  using F = Lanes<storage>;
  const StepSample<storage>& at;
  const StepVector<storage, noise>& loaded;
  Peaks& peaks;
  uint32_t vector;

  FASTDIFF_INLINE F x() const { return wide(loaded.x, Float::float32); }
  FASTDIFF_INLINE F out() const { return wide(loaded.out, at.out.kind); }
  FASTDIFF_INLINE F uncond() const { return wide(loaded.uncond, at.uncond.kind); }
  FASTDIFF_INLINE F variance() const { return wide(loaded.variance, at.variance.kind); }
  FASTDIFF_INLINE F y() const { return wide(loaded.y, Float::float32); }
  FASTDIFF_INLINE F history(int k) const { return wide(loaded.history[k], Float::float32); }
  FASTDIFF_INLINE F z() const { return wide(loaded.z, Float::float32); }
  FASTDIFF_INLINE F known() const { return wide(loaded.known, Float::float32); }
  FASTDIFF_INLINE F mask() const { return wide(loaded.mask, Float::float32); }

  FASTDIFF_INLINE void store_x(F value) const { store(at.x, value); }
  FASTDIFF_INLINE void store_y(F value) const { store(at.y, value); }
  FASTDIFF_INLINE void store_x0(F value) const { store(at.x0_out, value); }
  FASTDIFF_INLINE void store_history(float slot, F value) const {
    if (!(slot >= 0.0f && slot < static_cast<float>(at.history_slots))) return;
    Sample<storage> to = at.history[0];
    to.data += static_cast<int64_t>(slot) * at.history_stride;
    store(to, value);
  }
  FASTDIFF_INLINE void store_model_input(F value) const {
    if (at.branches == 0) return;
    Vector words;
    narrow(value, at.model_input.kind, words);
    Sample<storage> branch = at.model_input;
    branch.store(vector, words);
    if (at.branches == 1) return;  // and no loop for the two of guidance
    branch.data += at.branch_stride;
    branch.store(vector, words);
    FASTDIFF_NO_UNROLL
    for (int32_t k = 2; k < at.branches; ++k) {
      branch.data += at.branch_stride;
      branch.store(vector, words);
    }
  }
  FASTDIFF_INLINE void check(F out, F x) const {
    peaks.out = largest(peaks.out, out);
    peaks.state = largest(peaks.state, x);
  }

 private:
  static FASTDIFF_INLINE F wide(const Vector& words, Float kind) {
    F value;
    widen(words, kind, value);
    return value;
  }
  FASTDIFF_INLINE void store(const Sample<storage>& to, F value) const {
    Vector words;
    narrow(value, Float::float32, words);
    to.store(vector, words);
  }
};

// Looks the row up again: to keep it would cost registers, and this is rare.
FASTDIFF_INLINE void note_bad(const StepTask& task, int64_t sample, int kind) {
  atomic_min(task.first_bad + sample * task.first_bad_stride, 2 * task.row[sample] + kind);
}

// Vectors `vector`, `vector + stride`, ... of a sample.
template <Storage storage, Normals noise, class Layout, class Uses>
FASTDIFF_INLINE void step_thread(const StepTask& task, const Layout& layout, const Uses& uses, int64_t sample,
                                 uint32_t vector, uint32_t stride) {
  // Threads that go on from here do so together: what they share can stay in uniform registers.
  if (vector >= task.vectors) return;
  const Row row = read_row(task, layout, uses, sample);
  NoiseKey key;
  if (noise != Normals::none) {
    const uint32_t draw = static_cast<uint32_t>(task.row[sample]);
    key = keep(noise_key(task.seed[sample], task.sample[sample], draw, kStepStream));
  }
  const StepSample<storage> at(task, sample);
  const bool guided = uses.has(GUIDED) && (uses.has(WEIGHTED) || row.w != 1.0f);
  Peaks peaks;
  FASTDIFF_NO_UNROLL
  do {
    const StepVector<storage, noise> loaded(at, uses, guided, key, vector);
    step<Lanes<storage>>(uses, row, StepLanes<storage, noise>{at, loaded, peaks, vector});
    vector += stride;
  } while (vector < task.vectors);
  if (task.first_bad != nullptr) {
    if (!finite(peaks.state)) note_bad(task, sample, 1);
    if (!finite(peaks.out)) note_bad(task, sample, 0);
  }
}

}  // namespace
}  // namespace fastdiff
