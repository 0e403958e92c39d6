// The step as a call from outside, and what the ops that compute a part of it share with it.
#pragma once

#include "cpu/kernels.h"
#include "cpu/tensors.h"

namespace fastdiff {

// The arguments of the op `fastdiff::step`.
struct StepArguments {
  View x, out, table;
  int64_t layout = 0;
  View row;
  MaybeView uncond, w, key, model_input, first_bad, variance, scale, threshold, y, history, z, x0_out;
};

void step(const StepArguments& arguments);

struct StepCall {
  // Checks and takes in what the x0-prediction needs; `step` adds the rest to `tensors`.
  explicit StepCall(const StepArguments& arguments);
  StepCall(const StepCall&) = delete;  // `tensors` points into `pool`

  Row row(int64_t sample) const;

  int64_t layout;
  Shape shape;
  Table table;
  PerSample<int64_t> rows;
  PerSample<float> w, scale, threshold;
  StridesPool pool;
  StepTensors tensors;
};

}  // namespace fastdiff
