#include "tensors/q_sample_call.h"

#include "tensors/check.h"

namespace fastdiff {

QSampleCall::QSampleCall(const Tensor& x0, const Tensor& level_, const Tensor& table, const MaybeTensor& key,
                         const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
                         const MaybeTensor& drawn, DeviceType backend)
    : shape("x0", x0, backend),
      clean(image("x0", x0, shape, Access::read, pool)),
      noisy(image("x_t", x_t, shape, Access::write, pool)),
      given(noise ? state("noise", *noise, shape, Access::read, pool) : Operand{}),
      copy(drawn ? state("drawn", *drawn, shape, Access::write, pool) : Operand{}),
      levels(table, 2, shape),
      level(whole_numbers("level", level_, shape)) {
  for (const Operand& written : {noisy, copy}) {
    check_apart("the result", written, "x0", clean, shape);
    check_apart("the result", written, "noise", given, shape);
  }
  check(noise || (key && draw), "q_sample needs key and draw, or noise");
  if (!noise) draws.emplace(*key, *draw, stream, shape);
}

}  // namespace fastdiff
