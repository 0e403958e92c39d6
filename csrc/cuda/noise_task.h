// The arguments of the kernels that draw noise into a tensor, into clean data, or against a prediction.
#pragma once

#include "cuda/elements.h"
#include "cuda/queue.h"

namespace fastdiff {

struct NoiseTask {
  int64_t samples, elements;
  uint32_t vectors;  // of a sample, the last one perhaps not whole
  uint32_t stream;
  PerSample<int64_t> seed, sample, draw;  // not given where `noise` is
  Elements x0, pred, noise, written, drawn;
  // What x0 and the noise are multiplied by, where x0 is given.
  const float* table;
  int64_t levels, row_stride, column_stride;
  PerSample<int64_t> level;
  // noise_loss
  PerSample<float> grad;
  double* partial;  // [samples, parts]
  float* loss;
  Strides strides[4];
};

// Elements of a sample that one block reduces.
constexpr int kReduceThreads = 256, kReducePart = kReduceThreads * 8 * 4;

FASTDIFF_HOST_DEVICE constexpr int64_t parts_of(int64_t elements) { return (elements + kReducePart - 1) / kReducePart; }

// `dense`: all tensors are Storage::mixed, else Storage::any.
const char* launch_normal(const NoiseTask& task, bool dense, Queue queue);
const char* launch_q_sample(const NoiseTask& task, bool dense, Queue queue);
const char* launch_noise_loss(const NoiseTask& task, bool dense, Queue queue);
const char* launch_noise_loss_backward(const NoiseTask& task, bool dense, Queue queue);

}  // namespace fastdiff
