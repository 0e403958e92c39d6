// What the ops that compute a step have in common: the tensors of the call and the row of each sample.
#pragma once

#include "cpu/kernels.h"
#include "cpu/tensors.h"

namespace fastdiff {

struct StepCall {
  // Checks and takes in what the x0-prediction needs; `step` adds the rest to `tensors`.
  StepCall(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
           const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& scale, const MaybeTensor& threshold);

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
