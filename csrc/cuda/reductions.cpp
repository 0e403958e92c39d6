// The ops that reduce a sample to numbers, from which follows what `step` reads like w: guidance rescale, the inner
// products of the two outputs of guidance, and dynamic threshold.
#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/reduction_task.h"
#include "cuda/step_arguments.h"

namespace fastdiff::cuda {
namespace {

// Takes in both outputs of guidance and returns whether they are dense.
bool fill(const Tensor& out, const Tensor& uncond, const Shape& shape, OutputsTask& task) {
  StridesPool pool;
  Gathering all(pool, shape);
  task.samples = shape.samples;
  task.elements = shape.elements;
  task.vectors = vectors_of(shape, 8);
  task.out = all.add(image("out", out, shape, Access::read, pool));
  task.uncond = all.add(image("uncond", uncond, shape, Access::read, pool));
  all.copy_strides(task.strides);
  return all.dense();
}

// Memory for some sums over each part of each sample.
Tensor new_partial(const Tensor& like, const Shape& shape, int sums) {
  return new_vector(like, shape.samples * parts_of(shape.elements) * sums, ScalarType::Double);
}

}  // namespace

Tensor guidance_rescale(const Tensor& out, const Tensor& uncond, const Tensor& w, double phi) {
  const Shape shape("out", out, kCudaDevice);
  RescaleTask task{};
  const bool dense = fill(out, uncond, shape, task);
  task.w = floats("w", w, shape);
  task.phi = phi;
  Tensor partial = new_partial(out, shape, kRescaleSums), factor = one_per_sample(out, shape.samples);
  task.partial = static_cast<double*>(partial.mutable_data_ptr());
  task.factor = static_cast<float*>(factor.mutable_data_ptr());
  check_launch(launch_guidance_rescale(task, dense, current_queue(shape.like.device)));
  return factor;
}

Tensor inner_products(const Tensor& out, const Tensor& uncond) {
  const Shape shape("out", out, kCudaDevice);
  ProductsTask task{};
  const bool dense = fill(out, uncond, shape, task);
  Tensor partial = new_partial(out, shape, kProducts), products = three_per_sample(out, shape.samples);
  task.partial = static_cast<double*>(partial.mutable_data_ptr());
  task.products = static_cast<float*>(products.mutable_data_ptr());
  check_launch(launch_inner_products(task, dense, current_queue(shape.like.device)));
  return products;
}

Tensor threshold(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
                 const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& scale, const MaybeTensor& w_uncond,
                 double quantile) {
  StepArguments arguments{x, out, table, layout, row, view_of(uncond), view_of(w)};
  arguments.scale = view_of(scale);
  arguments.w_uncond = view_of(w_uncond);
  const StepCall call(arguments, kCudaDevice);
  check(quantile >= 0.0 && quantile <= 1.0, "quantile must be in 0..1, got ", quantile);
  const int64_t samples = call.shape.samples;
  check(call.shape.elements > 0 || samples == 0, "threshold needs samples with elements");
  Tensor result = one_per_sample(x, samples);
  if (samples == 0) return result;

  ThresholdTask task{};
  const Gathering all = fill(call, task.step);
  task.step.vectors = vectors_of(call.shape, 8);
  task.quantile = quantile;
  constexpr int64_t kSearchWords = sizeof(Search) / sizeof(int64_t);
  const int64_t words = samples * (kSearchWords + kDigitValues);
  Tensor memory = new_vector(x, words, ScalarType::Long);
  task.search = static_cast<Search*>(memory.mutable_data_ptr());
  task.counts = reinterpret_cast<uint64_t*>(task.search + samples);
  task.threshold = static_cast<float*>(result.mutable_data_ptr());
  const Queue queue = current_queue(call.shape.like.device);
  const char* error = clear(task.search, words * static_cast<int64_t>(sizeof(int64_t)), queue);
  check_launch(error != nullptr ? error : launch_threshold(task, all.dense(), queue));
  return result;
}

}  // namespace fastdiff::cuda
