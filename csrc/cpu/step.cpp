// The op `fastdiff::step`, and how the numbers of its samples become rows for the kernels.
#include "cpu/step.h"

#include <algorithm>
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "cpu/level.h"
#include "cpu/parallel.h"
#include "tensors/check.h"

namespace fastdiff {
namespace {

bool in_layout(int64_t layout, int column) { return layout >> column & 1; }

}  // namespace

void check_rows(const StepCall& call) {
  for (int64_t b = 0; b < call.shape.samples; ++b) call.table.check_row("row", call.rows[b]);
}

Row row_of(const StepCall& call, int64_t sample) {
  const Uses& uses = call.tensors.uses;
  const int64_t index = call.rows[sample];
  Row result;
  int64_t position = 0;
  for (int column = 0; column < COLUMNS; ++column) {
    if (in_layout(call.layout, column)) result.c[column] = call.table.at(index, position++);
  }
  if (!in_layout(call.layout, DY)) result.c[DY] = 1.0f;
  if (uses.has(SCALE_IN)) result.next_scale_in = call.table.at(std::min(index + 1, call.table.rows - 1), 0);
  if (uses.has(GUIDED)) result.w = call.w[sample];
  if (uses.has(WEIGHTED)) result.w_uncond = call.w_uncond[sample];
  if (uses.has(SCALED)) result.scale = call.scale[sample];
  if (uses.has(THRESHOLDED)) {
    const float clip = result.c[CLIP];
    const float bound = call.threshold[sample] > clip ? call.threshold[sample] : clip;
    result.c[CLIP] = bound;
    result.clip_ratio = bound == clip ? 1.0f : clip / bound;
  }
  return result;
}

namespace {

void check_slots(const StepCall& call) {
  if (!call.tensors.uses.has(SLOT)) return;
  const int slots = call.history_slots;
  for (int64_t b = 0; b < call.shape.samples; ++b) {
    const float slot = row_of(call, b).c[SLOT];
    check(slot >= -1.0f && slot < static_cast<float>(slots) && slot == std::floor(slot),
          "the table writes history slot ", slot, ", and history has ", slots, " slots");
  }
}

// Lowers first_bad of a sample; its ranges may be in the hands of several threads.
void note_bad(int64_t* first_bad, int64_t code) {
  int64_t seen = __atomic_load_n(first_bad, __ATOMIC_RELAXED);
  while (code < seen &&
         !__atomic_compare_exchange_n(first_bad, &seen, code, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace

void step(const StepArguments& arguments) {
  check(arguments.layout >> FAST_NORMALS != 1, "fast normals are for GPUs: use normals='exact'");
  StepCall call(arguments, DeviceType::cpu);
  check_rows(call);
  call.add_rest(arguments);
  check_slots(call);
  const StepTensors& tensors = call.tensors;

  const bool draws = call.keys.seed.data != nullptr;
  const Kernels& kernel = kernels();
  for_each_range(call.shape.samples, call.shape.elements, draws ? kNoiseGrain : kGrain, [&](Range range) {
    const int64_t b = range.sample;
    const int64_t index = call.rows[b];
    NoiseKey noise;
    if (draws) noise = noise_key(call.keys.seed[b], call.keys.sample[b], static_cast<uint32_t>(index), kStepStream);
    const int not_finite = kernel.step(tensors, row_of(call, b), noise, range);
    if (not_finite) {
      note_bad(const_cast<int64_t*>(&call.first_bad.data[b * call.first_bad.stride]),
               2 * index + (not_finite & kOutput ? 0 : 1));
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("step", TORCH_BOX(&step_op<&step>)); }

}  // namespace fastdiff
