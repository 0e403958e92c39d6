// The tensors of a step as its kernels see them.
#pragma once

#include "common/columns.h"
#include "tensors/operand.h"

namespace fastdiff {

struct StepTensors {
  Uses uses;
  Operand x, out, uncond, variance, y, z, x0_out, model_input, known, mask;
  Operand history[kHistorySlots];
  int64_t samples = 0;
  int64_t branches = 0;  // of model_input: each has the samples of x
};

}  // namespace fastdiff
