#include "tensors/noise_loss_call.h"

#include "tensors/check.h"

namespace fastdiff {

NoiseLossCall::NoiseLossCall(const Tensor& pred_, const Tensor& key, const Tensor& draw, int64_t stream,
                             const MaybeTensor& x0_, const MaybeTensor& level_, const MaybeTensor& table,
                             DeviceType backend)
    : shape("pred", pred_, backend),
      pred(image("pred", pred_, shape, Access::read, pool)),
      draws(key, draw, stream, shape) {
  check(x0_.has_value() == level_.has_value() && x0_.has_value() == table.has_value(),
        "noise_loss needs x0, level and table together, or none of them");
  if (!x0_) return;
  x0 = image("x0", *x0_, shape, Access::read, pool);
  levels.emplace(*table, 2, shape);
  level = whole_numbers("level", *level_, shape);
}

}  // namespace fastdiff
