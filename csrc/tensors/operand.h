// A tensor as the kernels see it: samples of elements that are counted in the logical order of (C, H, W).
#pragma once

#include "common/portable.h"
#include "common/floats.h"

namespace fastdiff {

constexpr int kMaxDims = 16;  // with the samples

// How the elements of one sample lie where they are not dense; sizes and strides in elements, the last dimension
// fastest.
struct Strides {
  int dims = 0;
  int64_t size[kMaxDims];
  int64_t stride[kMaxDims];
};

struct Operand {
  char* data = nullptr;              // null where the tensor is not given
  int64_t sample_stride = 0;         // in bytes
  const Strides* strides = nullptr;  // null where each sample is dense
  Float kind = Float::float32;

  FASTDIFF_INLINE bool given() const { return data != nullptr; }
  FASTDIFF_INLINE bool dense() const { return strides == nullptr; }
  FASTDIFF_INLINE char* at(int64_t sample, int64_t element) const {
    return data + sample * sample_stride + element * size_of(kind);
  }
};

// One number per sample.
template <class Number>
struct PerSample {
  const Number* data = nullptr;
  int64_t stride = 0;

  FASTDIFF_INLINE Number operator[](int64_t sample) const { return data[sample * stride]; }
};

}  // namespace fastdiff
