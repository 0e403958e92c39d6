// The ops of the cuda backend as torch calls them.
#include "cuda/ops.h"

#include <torch/csrc/stable/library.h>

#include "cuda/task.h"
#include "tensors/q_sample_call.h"

// The library and the key of tests/cuda/build.py, where these ops run without a GPU.
#if defined(FASTDIFF_CUDA_ON_HOST)
#define FASTDIFF_LIBRARY fastdiff_cuda_on_host
#define FASTDIFF_KEY CPU
#else
#define FASTDIFF_LIBRARY fastdiff
#define FASTDIFF_KEY CUDA
#endif

namespace fastdiff::cuda {
namespace {

void step_on_current_stream(const StepArguments& arguments) {
  step(arguments, current_queue(arguments.x.device).stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTDIFF_LIBRARY, FASTDIFF_KEY, m) {
  m.impl("step.cuda", TORCH_BOX(&step_op<&step_on_current_stream>));
  m.impl("normal_.cuda", TORCH_BOX(&normal_));
  m.impl("q_sample.cuda", TORCH_BOX(&q_sample<&q_sample_out>));
  m.impl("q_sample.cuda_out", TORCH_BOX(&q_sample_out));
  m.impl("noise_loss.cuda", TORCH_BOX(&noise_loss));
  m.impl("noise_loss_backward.cuda", TORCH_BOX(&noise_loss_backward));
  m.impl("guidance_rescale.cuda", TORCH_BOX(&guidance_rescale));
  m.impl("inner_products.cuda", TORCH_BOX(&inner_products));
  m.impl("threshold.cuda", TORCH_BOX(&threshold));
}

}  // namespace fastdiff::cuda
