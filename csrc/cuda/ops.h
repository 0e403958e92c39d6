// The ops of the cuda backend.
#pragma once

#include "tensors/step_call.h"

namespace fastdiff::cuda {

void step(const StepArguments& arguments, void* stream);

void normal_(const Tensor& z, const Tensor& key, const Tensor& draw, int64_t stream);
void q_sample_out(const Tensor& x0, const Tensor& level, const Tensor& table, const MaybeTensor& key,
                  const MaybeTensor& draw, int64_t stream, const MaybeTensor& noise, const Tensor& x_t,
                  const MaybeTensor& drawn);
Tensor noise_loss(const Tensor& pred, const Tensor& key, const Tensor& draw, int64_t stream, const MaybeTensor& x0,
                  const MaybeTensor& level, const MaybeTensor& table);
Tensor noise_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& key, const Tensor& draw,
                           int64_t stream, const MaybeTensor& x0, const MaybeTensor& level, const MaybeTensor& table);
Tensor guidance_rescale(const Tensor& out, const Tensor& uncond, const Tensor& w, double phi);
Tensor inner_products(const Tensor& out, const Tensor& uncond);
Tensor threshold(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
                 const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& scale, const MaybeTensor& w_uncond,
                 double quantile);

}  // namespace fastdiff::cuda
