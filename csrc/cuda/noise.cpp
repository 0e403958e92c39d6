// The ops that draw noise into a tensor, into the forward process, or against a prediction.
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "cuda/noise_task.h"
#include "cuda/ops.h"
#include "cuda/task.h"

namespace fastdiff::cuda {
namespace {

void add_draws(const Draws& draws, NoiseTask& task) {
  task.seed = draws.keys.seed;
  task.sample = draws.keys.sample;
  task.draw = draws.draw;
  task.stream = draws.stream;
}

NoiseTask task_of(const Shape& shape) {
  NoiseTask task{};
  task.samples = shape.samples;
  task.elements = shape.elements;
  task.vectors = vectors_of(shape, 8);
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
  const Shape shape("x0", x0, kCudaDevice);
  StridesPool pool;
  const Operand clean = image("x0", x0, shape, Access::read, pool);
  const Operand noisy = image("x_t", x_t, shape, Access::write, pool);
  const Operand given = noise ? state("noise", *noise, shape, Access::read, pool) : Operand{};
  const Operand copy = drawn ? state("drawn", *drawn, shape, Access::write, pool) : Operand{};
  for (const Operand& written : {noisy, copy}) {
    check_apart("the result", written, "x0", clean, shape);
    check_apart("the result", written, "noise", given, shape);
  }
  check(noise || (key && draw), "q_sample needs key and draw, or noise");
  const Table levels(table, 2, shape);
  NoiseTask task = task_of(shape);
  Gathering all(pool, shape);
  task.read = all.add(clean);
  task.written = all.add(noisy);
  task.noise = all.add(given);
  task.drawn = all.add(copy);
  task.table = levels.data;
  task.levels = levels.rows;
  task.row_stride = levels.row_stride;
  task.column_stride = levels.column_stride;
  task.level = whole_numbers("level", level, shape);
  if (!noise) add_draws(Draws(*key, *draw, stream, shape), task);
  all.copy_strides(task.strides);
  check_launch(launch_q_sample(task, all.dense(), current_queue(shape.like.device)));
}

std::tuple<Tensor, Tensor> q_sample(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                                    const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise,
                                    bool return_noise) {
  Tensor x_t = torch::stable::new_empty(x0, x0.sizes());
  const auto float32 = std::make_optional(ScalarType::Float);
  const bool returns = return_noise && !noise;
  Tensor drawn = returns ? torch::stable::new_empty(x0, x0.sizes(), float32)
                         : torch::stable::new_empty(x0, std::vector<int64_t>{0}, float32);
  q_sample_out(x0, level, table, key, draw, stream, noise, x_t, returns ? MaybeTensor(drawn) : std::nullopt);
  return {x_t, drawn};
}

Tensor noise_loss(const Tensor& pred, const Tensor& key, const Tensor& draw, int64_t stream) {
  const Shape shape("pred", pred, kCudaDevice);
  StridesPool pool;
  Gathering all(pool, shape);
  NoiseTask task = task_of(shape);
  task.read = all.add(image("pred", pred, shape, Access::read, pool));
  add_draws(Draws(key, draw, stream, shape), task);
  all.copy_strides(task.strides);
  const int64_t parts = parts_of(shape.elements);
  Tensor partial = torch::stable::new_empty(pred, std::vector<int64_t>{shape.samples * parts},
                                            std::make_optional(ScalarType::Double));
  Tensor loss = one_per_sample(pred, shape.samples);
  task.partial = static_cast<double*>(partial.mutable_data_ptr());
  task.loss = static_cast<float*>(loss.mutable_data_ptr());
  check_launch(launch_noise_loss(task, all.dense(), current_queue(shape.like.device)));
  return loss;
}

Tensor noise_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& key, const Tensor& draw,
                           int64_t stream) {
  const Shape shape("pred", pred, kCudaDevice);
  StridesPool pool;
  Gathering all(pool, shape);
  NoiseTask task = task_of(shape);
  Tensor result = torch::stable::new_empty(pred, pred.sizes());
  task.read = all.add(image("pred", pred, shape, Access::read, pool));
  task.written = all.add(image("the gradient", result, shape, Access::write, pool));
  task.grad = floats("grad", grad, shape);
  add_draws(Draws(key, draw, stream, shape), task);
  all.copy_strides(task.strides);
  check_launch(launch_noise_loss_backward(task, all.dense(), current_queue(shape.like.device)));
  return result;
}

}  // namespace fastdiff::cuda
