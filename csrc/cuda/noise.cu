#include <algorithm>

#include "cuda/noise_body.h"

namespace fastdiff {
namespace {

template <template <Storage> class Each>
const char* launch_vectors(const NoiseTask& task, bool dense, Queue queue) {
  using Dense = VectorBody<Storage::mixed, Each<Storage::mixed>>;
  using Any = VectorBody<Storage::any, Each<Storage::any>>;
  const Grid grid = {task.samples, blocks_for(task.samples, task.vectors, Dense::kThreads, queue)};
  return dense ? launch<Dense>(task, grid, queue) : launch<Any>(task, grid, queue);
}

template <Storage storage>
using NoiseWithGiven = NoiseData<storage, true>;
template <Storage storage>
using NoiseWithDrawn = NoiseData<storage, false>;
template <Storage storage>
using GradientToNoise = LossGradient<storage, false>;
template <Storage storage>
using GradientToMixture = LossGradient<storage, true>;

template <bool mixed>
const char* launch_loss_parts(const NoiseTask& task, Grid parts, bool dense, Queue queue) {
  return dense ? launch<LossPart<Storage::mixed, mixed>>(task, parts, queue)
               : launch<LossPart<Storage::any, mixed>>(task, parts, queue);
}

}  // namespace

const char* launch_normal(const NoiseTask& task, bool dense, Queue queue) {
  return launch_vectors<DrawNormals>(task, dense, queue);
}

const char* launch_q_sample(const NoiseTask& task, bool dense, Queue queue) {
  return task.noise.data != nullptr ? launch_vectors<NoiseWithGiven>(task, dense, queue)
                                    : launch_vectors<NoiseWithDrawn>(task, dense, queue);
}

const char* launch_noise_loss(const NoiseTask& task, bool dense, Queue queue) {
  const int64_t parts_each = parts_of(task.elements);
  const Grid parts = {task.samples, std::min(kMostBlocks, parts_each)};
  const char* error = task.x0.data != nullptr ? launch_loss_parts<true>(task, parts, dense, queue)
                                              : launch_loss_parts<false>(task, parts, dense, queue);
  return error != nullptr ? error : launch<LossMean>(task, {task.samples, 1}, queue);
}

const char* launch_noise_loss_backward(const NoiseTask& task, bool dense, Queue queue) {
  return task.x0.data != nullptr ? launch_vectors<GradientToMixture>(task, dense, queue)
                                 : launch_vectors<GradientToNoise>(task, dense, queue);
}

}  // namespace fastdiff
