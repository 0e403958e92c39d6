// The arguments of the kernels of a step.
#pragma once

#include "common/columns.h"
#include "cuda/elements.h"

namespace fastdiff {

struct StepTask {
  static constexpr int kStrided = 11;  // tensors that may have strides of their own: a history counts once

  Uses uses;
  Uses layout;  // the columns that are in the table
  int64_t samples, elements;
  uint32_t vectors;       // of a sample, the last one perhaps not whole
  int32_t branches;       // of model_input: each has the samples of x
  int64_t branch_stride;  // in bytes
  Elements x, out, uncond, variance, y, z, x0_out, model_input, known, mask;
  Elements history[kHistorySlots];
  int history_slots;
  int64_t history_stride;  // in bytes from slot to slot
  const float* table;
  int64_t rows, row_stride;
  PerSample<int64_t> row, seed, sample;
  PerSample<float> w, w_uncond, scale, threshold;
  int64_t* first_bad;
  int64_t first_bad_stride;
  Strides strides[kStrided];
};

}  // namespace fastdiff
