// How checked tensors become arguments of kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/elements.h"
#include "cuda/queue.h"
#include "tensors/check.h"
#include "tensors/tensors.h"

namespace fastdiff {

// Where the ops of this folder run: on a GPU, or, in tests/cuda, in place of one.
#if defined(FASTDIFF_CUDA_ON_HOST)
constexpr DeviceType kCudaDevice = DeviceType::cpu;
#else
constexpr DeviceType kCudaDevice = DeviceType::cuda;
#endif

// The stream on which torch queues its work for a device.
Queue current_queue(const Device& device);

inline void check_launch(const char* error) {
  check(error == nullptr, "a CUDA kernel could not be launched: ", error == nullptr ? "" : error,
        "; backend='eager' needs none");
}

inline Elements elements_of(const Operand& operand, const StridesPool& pool) {
  Elements result;
  result.data = operand.data;
  result.sample_stride = operand.sample_stride;
  result.kind = operand.kind;
  if (!operand.dense()) result.strides = static_cast<int8_t>(operand.strides - pool.entry);
  return result;
}

// Takes in the operands of a call, and what they have in common.
class Gathering {
 public:
  Gathering(const StridesPool& pool, const Shape& shape) : pool_(pool), shape_(shape) {}

  Elements add(const Operand& operand, int64_t samples = 0) {
    if (!operand.given()) return {};
    const int64_t vector = operand.kind == Float::float32 ? 4 : 8;
    const bool aligned = reinterpret_cast<uintptr_t>(operand.data) % 16 == 0 &&
                         (operand.sample_stride % 16 == 0 || std::max(samples, shape_.samples) <= 1);
    const bool dense = operand.dense() && aligned && shape_.elements <= kMostDense;
    dense_ = dense_ && dense && shape_.elements % 8 == 0;
    wide_ = wide_ && dense && shape_.elements % 4 == 0 && vector == 4;
    return elements_of(operand, pool_);
  }

  // Whether all operands are dense and aligned with whole vectors of 8 elements; of 4 and float32.
  bool dense() const { return dense_; }
  bool wide() const { return wide_; }

  // Copies the strides that operands have.
  template <int capacity>
  void copy_strides(Strides (&to)[capacity]) const {
    std::copy(pool_.entry, pool_.entry + pool_.used, to);
  }

 private:
  // Kernels for dense tensors count the bytes of a sample with 32 bits.
  static constexpr int64_t kMostDense = int64_t{1} << 30;

  const StridesPool& pool_;
  const Shape& shape_;
  bool dense_ = true, wide_ = true;
};

inline uint32_t vectors_of(const Shape& shape, int64_t vector) {
  return static_cast<uint32_t>((shape.elements + vector - 1) / vector);
}

}  // namespace fastdiff
