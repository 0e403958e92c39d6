// The step on a range of elements, and the two parts of it that are reduced to one number per sample.
#pragma once

#include "cpu/blocks.h"

#include "common/formulas.h"
#include "common/step.h"

namespace fastdiff {
namespace {

// The loads and stores of common/step.h for one block.
struct StepBlock {
  FloatBlock x_, y_, z_, x0_, known_, mask_, history_[kHistorySlots];
  Block out_, uncond_, variance_, input_;
  int64_t branches = 1;
  int64_t branch_stride = 0;  // in bytes
  int element = 0;
  // Sums of 0 * value: NaN as soon as one of the values was not finite.
  Lanes output_check, state_check;

  FASTDIFF_INLINE Lanes x() const { return x_.load(element); }
  FASTDIFF_INLINE Lanes out() const { return out_.load(element); }
  FASTDIFF_INLINE Lanes uncond() const { return uncond_.load(element); }
  FASTDIFF_INLINE Lanes variance() const { return variance_.load(element); }
  FASTDIFF_INLINE Lanes y() const { return y_.load(element); }
  FASTDIFF_INLINE Lanes z() const { return z_.load(element); }
  FASTDIFF_INLINE Lanes known() const { return known_.load(element); }
  FASTDIFF_INLINE Lanes mask() const { return mask_.load(element); }
  FASTDIFF_INLINE Lanes history(int k) const { return history_[k].load(element); }
  FASTDIFF_INLINE void store_x(Lanes value) const { x_.store(element, value); }
  FASTDIFF_INLINE void store_y(Lanes value) const { y_.store(element, value); }
  FASTDIFF_INLINE void store_x0(Lanes value) const { x0_.store(element, value); }
  FASTDIFF_INLINE void store_history(float slot, Lanes value) const {
    if (slot >= 0.0f) history_[static_cast<int>(slot)].store(element, value);
  }
  FASTDIFF_INLINE void store_model_input(Lanes value) const {
    for (int64_t branch = 0; branch < branches; ++branch) {
      Block{input_.data + branch * branch_stride, input_.kind}.store(element, value);
    }
  }
  FASTDIFF_INLINE void check(Lanes out, Lanes x) {
    output_check = fma(out, splat<Lanes>(0.0f), output_check);
    state_check = fma(x, splat<Lanes>(0.0f), state_check);
  }
};

struct StepBuffers {
  Buffer x, out, uncond, variance, y, z, x0, input, known, mask, history[kHistorySlots];
};

template <class Uses>
FASTDIFF_INLINE bool touches_history(const Uses& uses, const Row& row, int k) {
  return uses.has(CH0 + k) || uses.has(DH0 + k) || (uses.has(SLOT) && static_cast<int>(row.c[SLOT]) == k);
}

template <class Uses>
FASTDIFF_INLINE StepBlock open_block(const Uses& uses, const StepTensors& t, const Row& row, RangeNoise& noise,
                                     Place place, StepBuffers& buffers) {
  StepBlock block;
  block.output_check = block.state_check = splat<Lanes>(0.0f);
  block.x_ = place.read_state(t.x, buffers.x);
  block.out_ = place.read(t.out, buffers.out);
  if (uses.has(GUIDED)) {
    block.uncond_ = place.read(t.uncond, buffers.uncond);
  } else {
    fetch_next_page({reinterpret_cast<char*>(block.x_.data), Float::float32});
    fetch_next_page(block.out_);
  }
  if (uses.has(CV)) block.variance_ = place.read(t.variance, buffers.variance);
  if (uses.has(ANCHORED)) block.y_ = place.read_state(t.y, buffers.y);
  for (int k = 0; k < kHistorySlots; ++k) {
    if (touches_history(uses, row, k)) block.history_[k] = place.read_state(t.history[k], buffers.history[k]);
  }
  if (draws_noise(uses)) {
    block.z_ = t.z.given() ? place.read_state(t.z, buffers.z) : noise.at(place);
  }
  if (uses.has(K0)) block.known_ = place.read_state(t.known, buffers.known);
  if (inpaints(uses)) block.mask_ = place.read_state(t.mask, buffers.mask);
  if (uses.has(X0_OUT)) block.x0_ = place.open_state(t.x0_out, buffers.x0);
  if (uses.has(MODEL_INPUT)) {
    const bool direct = place.direct(t.model_input);
    block.input_ = place.open(t.model_input, buffers.input);
    block.branches = direct ? t.branches : 1;
    block.branch_stride = t.samples * t.model_input.sample_stride;
  }
  return block;
}

template <class Uses>
FASTDIFF_INLINE void close_block(const Uses& uses, const StepTensors& t, const Row& row, Place place,
                                 const StepBuffers& buffers) {
  place.close(t.x, buffers.x);
  if (writes_anchor(uses)) place.close(t.y, buffers.y);
  if (uses.has(SLOT) && row.c[SLOT] >= 0.0f) {
    const int slot = static_cast<int>(row.c[SLOT]);
    place.close(t.history[slot], buffers.history[slot]);
  }
  if (uses.has(X0_OUT)) place.close(t.x0_out, buffers.x0);
  if (uses.has(MODEL_INPUT)) {
    for (int64_t branch = 0; branch < t.branches; ++branch) {
      Place{place.sample + branch * t.samples, place.begin, place.count}.close(t.model_input, buffers.input);
    }
  }
}

template <class Uses>
int step_range_of(const Uses& uses, const StepTensors& tensors, const Row& row_, const NoiseKey& key, Range range) {
  // A copy that nothing else can point to stays in registers while floats are stored.
  const Row row = row_;
  StepBuffers buffers;
  RangeNoise noise(key, range);
  int not_finite = 0;
  for_each_block(range, [&](Place place) {
    StepBlock block = open_block(uses, tensors, row, noise, place, buffers);
    for (block.element = 0; block.element < kBlock; block.element += kPass) step<Lanes>(uses, row, block);
    if (uses.has(FIRST_BAD) && __builtin_expect(any_nan(block.output_check + block.state_check), false)) {
      if (any_nan(block.output_check)) not_finite |= kOutput;
      if (any_nan(block.state_check)) not_finite |= kState;
    }
    close_block(uses, tensors, row, place, buffers);
  });
  return not_finite;
}

// Calls run with the first formula that fits, or with the set of columns as it is.
template <class Run>
int with_formula(Uses uses, const Run& run) {
  return run(uses);
}
template <class First, class... Rest, class Run>
int with_formula(Uses uses, const Run& run) {
  return First::fits(uses) ? run(First{uses}) : with_formula<Rest...>(uses, run);
}

int step_range(const StepTensors& tensors, const Row& row, const NoiseKey& key, Range range) {
  return with_formula<DdimClipped, Ddim, DdimVelocity, AncestralClipped, Ancestral, MultistepClipped, Multistep, Usual>(
      tensors.uses, [&](const auto& uses) { return step_range_of(uses, tensors, row, key, range); });
}

void guide_range(const StepTensors& tensors, const Row& row, Range range, float* conditional, float* guided_out) {
  StepBuffers buffers;
  for_each_block(range, [&](Place place) {
    StepBlock block{};
    block.out_ = place.read(tensors.out, buffers.out);
    block.uncond_ = place.read(tensors.uncond, buffers.uncond);
    for (block.element = 0; block.element < kBlock; block.element += kPass) {
      store_floats(conditional, Float::float32, block.element, block.out());
      store_floats(guided_out, Float::float32, block.element, guided<Lanes>(tensors.uses, row, block));
    }
  });
}

void predict_x0_range(const StepTensors& tensors, const Row& row, Range range, float* x0) {
  StepBuffers buffers;
  for_each_block(range, [&](Place place) {
    StepBlock block{};
    block.x_ = place.read_state(tensors.x, buffers.x);
    block.out_ = place.read(tensors.out, buffers.out);
    if (tensors.uses.has(GUIDED)) block.uncond_ = place.read(tensors.uncond, buffers.uncond);
    for (block.element = 0; block.element < kBlock; block.element += kPass) {
      const Lanes out = guided<Lanes>(tensors.uses, row, block);
      store_floats(x0, Float::float32, block.element, predict_x0(tensors.uses, row, block.x(), out));
    }
  });
}

}  // namespace
}  // namespace fastdiff
