// What one thread of a step does: vectors of one sample, one after another.
#pragma once

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
        FASTDIFF_NAN4, FASTDIFF_NAN4,      FASTDIFF_NAN4,      FASTDIFF_NAN4,      FASTDIFF_NAN4,
        FASTDIFF_NAN4, __builtin_nanf(""), __builtin_nanf(""), __builtin_nanf(""),
#undef FASTDIFF_NAN4
};

// The coefficients of a sample. `layout` is the set of columns in the table, in whole or as the kernel knows it.
template <class Layout, class Uses>
FASTDIFF_INLINE Row read_row(const StepTask& task, const Layout& layout, const Uses& uses, int64_t sample) {
  const int64_t index = task.row[sample];
  const bool known = index >= 0 && index < task.rows;
  const float* row = known ? task.table + index * task.row_stride : kNoRow;
  Row result;
  const float* const first = row;
  row += layout.has(SCALE_IN);
  int position = 0;
  FASTDIFF_UNROLL
  for (int column = SCALE_IN + 1; column < COLUMNS; ++column) {
    if (layout.has(column)) result.c[column] = row[position++];
  }
  if (!layout.has(DY)) result.c[DY] = 1.0f;
  // Read last: before the columns, it would keep them from uniform registers.
  if (uses.has(SCALE_IN)) result.next_scale_in = first[known && index + 1 < task.rows ? task.row_stride : 0];
  if (uses.has(GUIDED)) result.w = task.w[sample];
  if (uses.has(SCALED)) result.scale = task.scale[sample];
  if (uses.has(THRESHOLDED)) {
    const float clip = result.c[CLIP], threshold = task.threshold[sample];
    const float bound = threshold > clip ? threshold : clip;
    result.c[CLIP] = bound;
    result.clip_ratio = bound == clip ? 1.0f : clip / bound;
  }
  return result;
}

FASTDIFF_INLINE float largest(float seen, float value) { return at_least(__builtin_fabsf(value), seen); }
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
template <Storage storage, class Uses>
struct StepSample {
  using S = Sample<storage>;
  S x, out, uncond, variance, y, z, x0_out, model_input, history[kHistorySlots];
  int32_t branches;
  int64_t branch_stride, history_stride;
  int history_slots;

  FASTDIFF_INLINE StepSample(const StepTask& task, const Uses& uses, int64_t b) {
    const auto network = [&](const Elements& tensor) { return open<storage>(tensor, task.strides, b, task.elements); };
    const auto state = [&](const Elements& tensor) {
      return open_state<storage>(tensor, task.strides, b, task.elements);
    };
    x = state(task.x);
    out = network(task.out);
    if (uses.has(GUIDED)) uncond = network(task.uncond);
    if (uses.has(CV)) variance = network(task.variance);
    if (uses.has(ANCHORED)) y = state(task.y);
    if (uses.has(X0_OUT)) x0_out = state(task.x0_out);
    z = state(task.z);
    if (uses.has(MODEL_INPUT)) model_input = network(task.model_input);
    FASTDIFF_UNROLL
    for (int k = 0; k < kHistorySlots; ++k) history[k] = state(task.history[k]);
    branches = task.branches;
    branch_stride = task.samples * task.model_input.sample_stride;
    history_slots = task.history_slots;
    history_stride = task.history_stride;
  }
};

// What a thread has loaded of one vector, and what it has not stored yet.
template <Storage storage, class Uses>
struct StepVector {
  Vector x, out, uncond, variance, y, z, history[kHistorySlots], model_input;

  FASTDIFF_INLINE StepVector(const StepSample<storage, Uses>& at, const Uses& uses, bool guided, bool given_noise,
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
    if (given_noise && uses.draws_noise()) z = at.z.load(vector);
  }
};

// The loads and stores of common/step.h for one quad of a vector.
template <Storage storage, int quad, class Uses>
struct StepQuad {
  const StepSample<storage, Uses>& at;
  StepVector<storage, Uses>& loaded;
  Peaks& peaks;
  uint32_t vector;

  FASTDIFF_INLINE Four x() const { return loaded.x.widened(Float::float32, quad); }
  FASTDIFF_INLINE Four out() const { return loaded.out.widened(at.out.kind, quad); }
  FASTDIFF_INLINE Four uncond() const { return loaded.uncond.widened(at.uncond.kind, quad); }
  FASTDIFF_INLINE Four variance() const { return loaded.variance.widened(at.variance.kind, quad); }
  FASTDIFF_INLINE Four y() const { return loaded.y.widened(Float::float32, quad); }
  FASTDIFF_INLINE Four history(int k) const { return loaded.history[k].widened(Float::float32, quad); }
  FASTDIFF_INLINE Four z() const { return loaded.z.widened(Float::float32, quad); }

  FASTDIFF_INLINE void store(const Sample<storage>& to, Four value) const {
    Vector words;
    words.narrow(Float::float32, quad, value);
    to.store(vector, quad, words);
  }
  FASTDIFF_INLINE void store_x(Four value) const { store(at.x, value); }
  FASTDIFF_INLINE void store_y(Four value) const { store(at.y, value); }
  FASTDIFF_INLINE void store_x0(Four value) const { store(at.x0_out, value); }
  FASTDIFF_INLINE void store_history(float slot, Four value) const {
    if (!(slot >= 0.0f && slot < static_cast<float>(at.history_slots))) return;
    Sample<storage> to = at.history[0];
    to.data += static_cast<int64_t>(slot) * at.history_stride;
    store(to, value);
  }
  FASTDIFF_INLINE void store_model_input(Four value) const {
    loaded.model_input.narrow(at.model_input.kind, quad, value);
    Sample<storage> branch = at.model_input;
    branch.store(vector, quad, loaded.model_input);
    FASTDIFF_NO_UNROLL
    for (int32_t k = 1; k < at.branches; ++k) {
      branch.data += at.branch_stride;
      branch.store(vector, quad, loaded.model_input);
    }
  }
  FASTDIFF_INLINE void check(Four out, Four x) const {
    peaks.out = largest(peaks.out, out);
    peaks.state = largest(peaks.state, x);
  }
};

// Looks the row up again: to keep it would cost registers, and this is rare.
FASTDIFF_INLINE void note_bad(const StepTask& task, int64_t sample, int kind) {
  atomic_min(task.first_bad + sample * task.first_bad_stride, 2 * task.row[sample] + kind);
}

// Vectors `first`, `first + stride`, ... of a sample.
template <Storage storage, Normals noise, class Layout, class Uses>
FASTDIFF_INLINE void step_thread(const StepTask& task, const Layout& layout, const Uses& uses, int64_t sample,
                                 uint32_t first, uint32_t stride) {
  const Row row = read_row(task, layout, uses, sample);
  NoiseKey key;
  if (noise != Normals::none) {
    key = noise_key(task.seed[sample], task.sample[sample], static_cast<uint32_t>(task.row[sample]), kStepStream);
  }
  const StepSample<storage, Uses> at(task, uses, sample);
  Peaks peaks;
  const bool guided = uses.has(GUIDED) && row.w != 1.0f;
  FASTDIFF_NO_UNROLL
  for (uint32_t vector = first; vector < task.vectors; vector += stride) {
    constexpr int kQuads = kVector<storage> / 4;
    // Drawn before the loads: what they bring would wait in registers.
    Vector z;
    if (noise != Normals::none) z = draw<kQuads>(key, vector * kQuads, noise == Normals::fast);
    StepVector<storage, Uses> loaded(at, uses, guided, noise == Normals::none, vector);
    if (noise != Normals::none) loaded.z = z;
    step<Four>(uses, row, StepQuad<storage, 0, Uses>{at, loaded, peaks, vector});
    if constexpr (kQuads == 2) step<Four>(uses, row, StepQuad<storage, 1, Uses>{at, loaded, peaks, vector});
  }
  if (uses.has(FIRST_BAD)) {
    if (!finite(peaks.state)) note_bad(task, sample, 1);
    if (!finite(peaks.out)) note_bad(task, sample, 0);
  }
}

}  // namespace
}  // namespace fastdiff
