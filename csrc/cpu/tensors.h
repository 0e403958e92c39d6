// Tensors as operands of the kernels: what is checked, and what is refused with which words.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "cpu/operand.h"

namespace fastdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// A tensor as its caller holds it: sizes and strides (in elements) are the caller's.
struct View {
  View() = default;
  View(const Tensor& tensor);  // not explicit: the ops take either

  void* data = nullptr;
  const int64_t* size = nullptr;
  const int64_t* stride = nullptr;
  int64_t dims = 0;
  ScalarType type = ScalarType::Undefined;
  bool on_cpu = false;
};
using MaybeView = std::optional<View>;

MaybeView view_of(const MaybeTensor& tensor);

// Refuses a tensor in which two elements share memory.
void check_own_memory(const char* name, const View& view);

// The shape that the image tensors of a call have in common.
struct Shape {
  explicit Shape(const View& like);

  View like;
  int64_t samples;
  int64_t elements;  // of one sample
};

enum class Access { read, write };

// The strides of a call's operands that are not dense.
struct StridesPool {
  static constexpr int kCapacity = 12;
  Strides entry[kCapacity];
  int used = 0;
};

// Returns a tensor of the shape as an operand; `branches` times as many samples are allowed where it is not 1.
Operand image(const char* name, const View& view, const Shape& shape, Access access, StridesPool& pool,
              int64_t branches = 1);

// The same for a tensor of float32.
Operand state(const char* name, const View& view, const Shape& shape, Access access, StridesPool& pool);

// Refuses a tensor that is written while `read` is, where they share memory other than element for element. The samples
// of `read` may lie in any branch of `written`.
void check_apart(const char* written_name, const Operand& written, const char* read_name, const Operand& read,
                 const Shape& shape, int64_t branches = 1);

// Puts the slots of a history [slots, samples, ...] into `slot` and returns how many there are.
int history_slots(const View& view, const Shape& shape, StridesPool& pool, Operand* slot);

// One number per sample.
template <class Number>
struct PerSample {
  const Number* data = nullptr;
  int64_t stride = 0;

  Number operator[](int64_t sample) const { return data[sample * stride]; }
};

// A new float32 tensor with one number for each sample, on the device of `like`.
Tensor one_per_sample(const Tensor& like, int64_t samples);

PerSample<int64_t> whole_numbers(const char* name, const View& view, int64_t samples);
PerSample<float> floats(const char* name, const View& view, int64_t samples);

// float32 [rows, columns].
struct Table {
  Table(const View& view, int64_t columns);

  float at(int64_t row, int64_t column) const { return data[row * row_stride + column * column_stride]; }
  void check_row(const char* name, int64_t row) const;

  const float* data;
  int64_t rows, row_stride, column_stride;
};

// Seeds and global sample indices, int64 [2, samples].
struct Keys {
  Keys() = default;
  Keys(const View& view, int64_t samples);

  PerSample<int64_t> seed, sample;
};

}  // namespace fastdiff
