// A call of noise_loss or of its gradient from outside, checked and taken in: what all backends share.
#pragma once

#include <optional>

#include "tensors/tensors.h"

namespace fastdiff {

struct NoiseLossCall {
  // The levels are not looked at: they may be where the host cannot read.
  NoiseLossCall(const Tensor& pred, const Tensor& key, const Tensor& draw, int64_t stream, const MaybeTensor& x0,
                const MaybeTensor& level, const MaybeTensor& table, DeviceType backend);
  NoiseLossCall(const NoiseLossCall&) = delete;  // the operands point into `pool`

  Shape shape;
  StridesPool pool;
  Operand pred, x0;
  Draws draws;
  // Where x0 is given.
  std::optional<Table> levels;
  PerSample<int64_t> level;
};

}  // namespace fastdiff
