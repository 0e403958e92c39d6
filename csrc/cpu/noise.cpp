// The ops that draw noise into a tensor, into the forward process, or against a prediction.
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/level.h"
#include "cpu/parallel.h"
#include "tensors/noise_loss_call.h"
#include "tensors/q_sample_call.h"

namespace fastdiff {
namespace {

NoiseKey key_of(const Draws& draws, int64_t sample) {
  return noise_key(draws.keys.seed[sample], draws.keys.sample[sample], static_cast<uint32_t>(draws.draw[sample]),
                   draws.stream);
}

void normal_(const Tensor& z, const Tensor& key, const Tensor& draw, int64_t stream) {
  const Shape shape("z", z, DeviceType::cpu);
  StridesPool pool;
  const Operand to = image("z", z, shape, Access::write, pool);
  const Draws draws(key, draw, stream, shape);
  const Kernels& kernel = kernels();
  for_each_range(shape.samples, shape.elements, kNoiseGrain,
                 [&](Range range) { kernel.normal(to, key_of(draws, range.sample), range); });
}

void q_sample_out(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                  const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
                  const MaybeTensor& drawn) {
  const QSampleCall call(x0, level, table, key, draw, stream, noise, x_t, drawn, DeviceType::cpu);
  const Table& levels = call.levels;
  for (int64_t b = 0; b < call.shape.samples; ++b) levels.check_row("level", call.level[b]);
  const Kernels& kernel = kernels();
  for_each_range(call.shape.samples, call.shape.elements, call.draws ? kNoiseGrain : kGrain, [&](Range range) {
    const int64_t b = range.sample, row = call.level[b];
    const NoiseKey whose = call.draws ? key_of(*call.draws, b) : NoiseKey{};
    kernel.q_sample(call.clean, call.given, call.noisy, call.copy, levels.at(row, 0), levels.at(row, 1), whose, range);
  });
}

// The target of a sample.
Target target_of(const NoiseLossCall& call, int64_t sample) {
  if (!call.levels) return {};
  const int64_t row = call.level[sample];
  return {call.x0, call.levels->at(row, 0), call.levels->at(row, 1)};
}

void check_levels(const NoiseLossCall& call) {
  if (!call.levels) return;
  for (int64_t b = 0; b < call.shape.samples; ++b) call.levels->check_row("level", call.level[b]);
}

Tensor noise_loss(const Tensor& pred, const Tensor& key, const Tensor& draw, int64_t stream, const MaybeTensor& x0,
                  const MaybeTensor& level, const MaybeTensor& table) {
  const NoiseLossCall call(pred, key, draw, stream, x0, level, table, DeviceType::cpu);
  check_levels(call);
  const Shape& shape = call.shape;
  const int64_t parts = parts_of(shape.elements);
  std::vector<double> partial(shape.samples * parts);
  const Kernels& kernel = kernels();
  for_each_range(
      shape.samples, shape.elements, kNoiseGrain,
      [&](Range range) {
        partial[range.sample * parts + range.begin / kPart] =
            kernel.noise_loss(call.pred, target_of(call, range.sample), key_of(call.draws, range.sample), range);
      },
      kPart);

  Tensor loss = one_per_sample(pred, shape.samples);
  float* to = static_cast<float*>(loss.mutable_data_ptr());
  for (int64_t b = 0; b < shape.samples; ++b) {
    double sum = 0.0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[b * parts + part];
    to[b] = static_cast<float>(sum / static_cast<double>(shape.elements));
  }
  return loss;
}

Tensor noise_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& key, const Tensor& draw,
                           int64_t stream, const MaybeTensor& x0, const MaybeTensor& level, const MaybeTensor& table) {
  NoiseLossCall call(pred, key, draw, stream, x0, level, table, DeviceType::cpu);
  check_levels(call);
  const Shape& shape = call.shape;
  const auto of_loss = floats("grad", grad, shape);
  Tensor result = torch::stable::new_empty(pred, pred.sizes());
  const Operand to = image("the gradient", result, shape, Access::write, call.pool);
  const Kernels& kernel = kernels();
  for_each_range(shape.samples, shape.elements, kNoiseGrain, [&](Range range) {
    const int64_t b = range.sample;
    const float scale = of_loss[b] * 2.0f / static_cast<float>(shape.elements);
    kernel.noise_loss_backward(call.pred, target_of(call, b), to, scale, key_of(call.draws, b), range);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("normal_", TORCH_BOX(&normal_));
  m.impl("q_sample", TORCH_BOX(&q_sample<&q_sample_out>));
  m.impl("q_sample.out", TORCH_BOX(&q_sample_out));
  m.impl("noise_loss", TORCH_BOX(&noise_loss));
  m.impl("noise_loss_backward", TORCH_BOX(&noise_loss_backward));
}

}  // namespace fastdiff
