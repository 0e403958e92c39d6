#include "cuda/step_body.h"

namespace fastdiff {

const char* launch_step_float16(const StepTask& task, Queue queue) {
  return with_normals(task, [&](auto noise) { return launch_best<Storage::float16, noise()>(task, queue); });
}

}  // namespace fastdiff
