// Tensors as operands of the kernels: what is checked, and what is refused with which words.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "tensors/operand.h"

namespace fastdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

enum class DeviceType : uint8_t { cpu, cuda, other };

struct Device {
  DeviceType type = DeviceType::other;
  int32_t index = 0;

  bool operator==(const Device& to) const { return type == to.type && (type == DeviceType::cpu || index == to.index); }
};

// A tensor as its caller holds it: sizes and strides (in elements) are the caller's.
struct View {
  View() = default;
  View(const Tensor& tensor);  // not explicit: the ops take either

  void* data = nullptr;
  const int64_t* size = nullptr;
  const int64_t* stride = nullptr;
  int64_t dims = 0;
  ScalarType type = ScalarType::Undefined;
  Device device;
};
using MaybeView = std::optional<View>;

MaybeView view_of(const MaybeTensor& tensor);

// Refuses a tensor in which two elements share memory.
void check_own_memory(const char* name, const View& view);

// The shape that the image tensors of a call have in common, and the device of all of its tensors.
struct Shape {
  Shape(const char* name, const View& like, DeviceType backend);

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

// A new tensor [size] on the device of `like`, and float32 ones with one number for each sample, or three: [3,
// samples].
Tensor new_vector(const Tensor& like, int64_t size, ScalarType type);
Tensor one_per_sample(const Tensor& like, int64_t samples);
Tensor three_per_sample(const Tensor& like, int64_t samples);

PerSample<int64_t> whole_numbers(const char* name, const View& view, const Shape& shape);
PerSample<float> floats(const char* name, const View& view, const Shape& shape);

// float32 [rows, columns].
struct Table {
  Table(const View& view, int64_t columns, const Shape& shape);

  float at(int64_t row, int64_t column) const { return data[row * row_stride + column * column_stride]; }
  void check_row(const char* name, int64_t row) const;

  const float* data;
  int64_t rows, columns, row_stride, column_stride;
};

// Seeds and global sample indices, int64 [2, samples].
struct Keys {
  Keys() = default;
  Keys(const View& view, const Shape& shape);

  PerSample<int64_t> seed, sample;
};

// Whose noise each sample gets.
struct Draws {
  Draws(const View& key, const View& draw, int64_t stream, const Shape& shape);

  Keys keys;
  PerSample<int64_t> draw;
  uint32_t stream;
};

}  // namespace fastdiff
