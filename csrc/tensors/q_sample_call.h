// A call of q_sample from outside, checked and taken in: what all backends share.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "tensors/tensors.h"

namespace fastdiff {

struct QSampleCall {
  // The levels are not looked at: they may be where the host cannot read.
  QSampleCall(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
              const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
              const MaybeTensor& drawn, DeviceType backend);
  QSampleCall(const QSampleCall&) = delete;  // the operands point into `pool`

  Shape shape;
  StridesPool pool;
  Operand clean, noisy, given, copy;
  Table levels;
  PerSample<int64_t> level;
  std::optional<Draws> draws;  // where noise is to be drawn
};

// The op `fastdiff::q_sample.out` of a backend.
using QSampleOut = void (*)(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                            const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
                            const MaybeTensor& drawn);

// The op `fastdiff::q_sample` of a backend: q_sample.out into new tensors.
template <QSampleOut out>
std::tuple<Tensor, Tensor> q_sample(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                                    const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise,
                                    bool return_noise) {
  Tensor x_t = torch::stable::new_empty(x0, x0.sizes());
  const auto float32 = std::make_optional(ScalarType::Float);
  const bool returns = return_noise && !noise;
  Tensor drawn = returns ? torch::stable::new_empty(x0, x0.sizes(), float32)
                         : torch::stable::new_empty(x0, std::vector<int64_t>{0}, float32);
  out(x0, level, table, key, draw, stream, noise, x_t, returns ? MaybeTensor(drawn) : std::nullopt);
  return {x_t, drawn};
}

}  // namespace fastdiff
