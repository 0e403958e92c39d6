#include "cuda/step_body.h"

namespace fastdiff {

const char* launch_step_mixed(const StepTask& task, Queue queue) {
  return with_normals(task, [&](auto noise) { return launch_any<Storage::mixed, noise()>(task, queue); });
}

}  // namespace fastdiff
