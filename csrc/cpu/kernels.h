// The kernels that every instruction set provides: each works on consecutive elements of one sample.
#pragma once

#include "common/noise_key.h"
#include "cpu/operand.h"
#include "tensors/step_tensors.h"

namespace fastdiff {

// Elements that a kernel takes at once. Where a sample is dense, whole blocks are read and written where they are; its
// tail, and samples with strides, go through buffers of this size.
constexpr int kBlock = 128;

// Some elements of one sample; `begin` is a multiple of kBlock.
struct Range {
  int64_t sample, begin, end;
};

// What `step` returns: whether any output or state in the range is not finite.
enum NotFinite : int { kOutput = 1, kState = 2 };

// What a prediction is compared with: t0 x0 + te eps, or eps where x0 is not given.
struct Target {
  Operand x0;
  float t0 = 0.0f, te = 1.0f;
};

struct Kernels {
  int (*step)(const StepTensors& tensors, const Row& row, const NoiseKey& key, Range range);
  void (*normal)(const Operand& z, const NoiseKey& key, Range range);
  // Reads `noise` where it is given, draws it otherwise; writes it to `drawn` where that is given.
  void (*q_sample)(const Operand& x0, const Operand& noise, const Operand& x_t, const Operand& drawn, float alpha,
                   float sigma, const NoiseKey& key, Range range);
  // The sum of (pred - target)^2.
  double (*noise_loss)(const Operand& pred, const Target& target, const NoiseKey& key, Range range);
  // grad = scale (pred - target).
  void (*noise_loss_backward)(const Operand& pred, const Target& target, const Operand& grad, float scale,
                              const NoiseKey& key, Range range);
  // The output of one block as float32, without guidance and with it.
  void (*guide)(const StepTensors& tensors, const Row& row, Range block, float* conditional, float* guided);
  // The x0-prediction of one block before it is clipped.
  void (*predict_x0)(const StepTensors& tensors, const Row& row, Range block, float* x0);
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace fastdiff
