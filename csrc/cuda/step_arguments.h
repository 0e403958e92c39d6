// How a call of the step becomes the arguments of its kernels.
#pragma once

#include "cuda/step_task.h"
#include "cuda/task.h"
#include "tensors/step_call.h"

namespace fastdiff {

// Fills in all but the number of vectors.
Gathering fill(const StepCall& call, StepTask& task);

}  // namespace fastdiff
