// The ops of the cuda backend as torch calls them.
#include "cuda/ops.h"

#include <torch/csrc/stable/library.h>

#include "cuda/task.h"

// The library and the key of tests/cuda/build.py, where these ops run without a GPU.
#if defined(FASTDIFF_CUDA_ON_HOST)
#define FASTDIFF_LIBRARY fastdiff_cuda_on_host
#define FASTDIFF_KEY CPU
#else
#define FASTDIFF_LIBRARY fastdiff
#define FASTDIFF_KEY CUDA
#endif

namespace fastdiff::cuda {

void step_op(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
             const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& key, const MaybeTensor& model_input,
             const MaybeTensor& first_bad, const MaybeTensor& variance, const MaybeTensor& scale,
             const MaybeTensor& threshold, const MaybeTensor& y, const MaybeTensor& history, const MaybeTensor& z,
             const MaybeTensor& x0_out) {
  const StepArguments arguments = {x,
                                   out,
                                   table,
                                   layout,
                                   row,
                                   view_of(uncond),
                                   view_of(w),
                                   view_of(key),
                                   view_of(model_input),
                                   view_of(first_bad),
                                   view_of(variance),
                                   view_of(scale),
                                   view_of(threshold),
                                   view_of(y),
                                   view_of(history),
                                   view_of(z),
                                   view_of(x0_out)};
  step(arguments, current_queue(arguments.x.device).stream);
}

STABLE_TORCH_LIBRARY_IMPL(FASTDIFF_LIBRARY, FASTDIFF_KEY, m) {
  m.impl("step.cuda", TORCH_BOX(&step_op));
  m.impl("normal_.cuda", TORCH_BOX(&normal_));
  m.impl("q_sample.cuda", TORCH_BOX(&q_sample));
  m.impl("q_sample.cuda_out", TORCH_BOX(&q_sample_out));
  m.impl("noise_loss.cuda", TORCH_BOX(&noise_loss));
  m.impl("noise_loss_backward.cuda", TORCH_BOX(&noise_loss_backward));
  m.impl("guidance_rescale.cuda", TORCH_BOX(&guidance_rescale));
  m.impl("threshold.cuda", TORCH_BOX(&threshold));
}

}  // namespace fastdiff::cuda
