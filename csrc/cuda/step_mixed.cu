#include "cuda/step_body.h"

namespace fastdiff {

const char* launch_step_mixed(const StepTask& task, Queue queue) {
  return with_normals(
      task, [&](auto noise) { return launch_step_of<StepBody<AnyColumns, Storage::mixed, noise()>>(task, queue); });
}

}  // namespace fastdiff
