// The launch of a step, by how its tensors are stored.
#pragma once

#include "cuda/queue.h"
#include "cuda/step_task.h"

namespace fastdiff {

const char* launch_step_float32(const StepTask& task, Queue queue);
const char* launch_step_bfloat16(const StepTask& task, Queue queue);
const char* launch_step_float16(const StepTask& task, Queue queue);
const char* launch_step_mixed(const StepTask& task, Queue queue);
const char* launch_step_any(const StepTask& task, Queue queue);

}  // namespace fastdiff
