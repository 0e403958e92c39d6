// The ops that draw noise into a tensor, into the forward process, or against a prediction.
#include <torch/csrc/stable/ops.h>

#include "cuda/noise_task.h"
#include "cuda/ops.h"
#include "cuda/task.h"
#include "tensors/noise_loss_call.h"
#include "tensors/q_sample_call.h"

namespace fastdiff::cuda {
namespace {

void add_draws(const Draws& draws, NoiseTask& task) {
  task.seed = draws.keys.seed;
  task.sample = draws.keys.sample;
  task.draw = draws.draw;
  task.stream = draws.stream;
}

void add_levels(const Table& table, PerSample<int64_t> level, NoiseTask& task) {
  task.table = table.data;
  task.levels = table.rows;
  task.row_stride = table.row_stride;
  task.column_stride = table.column_stride;
  task.level = level;
}

NoiseTask task_of(const Shape& shape) {
  NoiseTask task{};
  task.samples = shape.samples;
  task.elements = shape.elements;
  task.vectors = vectors_of(shape, 8);
  return task;
}

// The task of a call, but for what is written.
NoiseTask task_of(const NoiseLossCall& call, Gathering& all) {
  NoiseTask task = task_of(call.shape);
  task.pred = all.add(call.pred);
  task.x0 = all.add(call.x0);
  add_draws(call.draws, task);
  if (call.levels) add_levels(*call.levels, call.level, task);
  return task;
}

}  // namespace

void normal_(const Tensor& z, const Tensor& key, const Tensor& draw, int64_t stream) {
  const Shape shape("z", z, kCudaDevice);
  StridesPool pool;
  Gathering all(pool, shape);
  NoiseTask task = task_of(shape);
  task.written = all.add(image("z", z, shape, Access::write, pool));
  add_draws(Draws(key, draw, stream, shape), task);
  all.copy_strides(task.strides);
  check_launch(launch_normal(task, all.dense(), current_queue(shape.like.device)));
}

void q_sample_out(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                  const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
                  const MaybeTensor& drawn) {
  const QSampleCall call(x0, level, table, key, draw, stream, noise, x_t, drawn, kCudaDevice);
  NoiseTask task = task_of(call.shape);
  Gathering all(call.pool, call.shape);
  task.x0 = all.add(call.clean);
  task.written = all.add(call.noisy);
  task.noise = all.add(call.given);
  task.drawn = all.add(call.copy);
  add_levels(call.levels, call.level, task);
  if (call.draws) add_draws(*call.draws, task);
  all.copy_strides(task.strides);
  check_launch(launch_q_sample(task, all.dense(), current_queue(call.shape.like.device)));
}

Tensor noise_loss(const Tensor& pred, const Tensor& key, const Tensor& draw, int64_t stream, const MaybeTensor& x0,
                  const MaybeTensor& level, const MaybeTensor& table) {
  const NoiseLossCall call(pred, key, draw, stream, x0, level, table, kCudaDevice);
  const Shape& shape = call.shape;
  Gathering all(call.pool, shape);
  NoiseTask task = task_of(call, all);
  all.copy_strides(task.strides);
  const int64_t parts = parts_of(shape.elements);
  Tensor partial = new_vector(pred, shape.samples * parts, ScalarType::Double);
  Tensor loss = one_per_sample(pred, shape.samples);
  task.partial = static_cast<double*>(partial.mutable_data_ptr());
  task.loss = static_cast<float*>(loss.mutable_data_ptr());
  check_launch(launch_noise_loss(task, all.dense(), current_queue(shape.like.device)));
  return loss;
}

Tensor noise_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& key, const Tensor& draw,
                           int64_t stream, const MaybeTensor& x0, const MaybeTensor& level, const MaybeTensor& table) {
  NoiseLossCall call(pred, key, draw, stream, x0, level, table, kCudaDevice);
  const Shape& shape = call.shape;
  Gathering all(call.pool, shape);
  NoiseTask task = task_of(call, all);
  Tensor result = torch::stable::new_empty(pred, pred.sizes());
  task.written = all.add(image("the gradient", result, shape, Access::write, call.pool));
  task.grad = floats("grad", grad, shape);
  all.copy_strides(task.strides);
  check_launch(launch_noise_loss_backward(task, all.dense(), current_queue(shape.like.device)));
  return result;
}

}  // namespace fastdiff::cuda
