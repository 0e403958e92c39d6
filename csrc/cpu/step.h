// The step on the CPU, and what the ops that compute a part of it share with it.
#pragma once

#include "cpu/kernels.h"
#include "tensors/step_call.h"

namespace fastdiff {

void step(const StepArguments& arguments);

// Refuses a row that is not in the table.
void check_rows(const StepCall& call);

Row row_of(const StepCall& call, int64_t sample);

}  // namespace fastdiff
