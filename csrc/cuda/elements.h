// Tensors as the device kernels see them, and how a thread loads and stores its elements.
#pragma once

#include <cstring>

#include "common/floats.h"
#include "common/two.h"
#include "tensors/operand.h"

#if !defined(__CUDACC__)
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#endif

namespace fastdiff {

// The elements of a tensor's samples; as Operand, but for a kernel's arguments.
struct Elements {
  char* data = nullptr;       // null where the tensor is not given
  int64_t sample_stride = 0;  // in bytes
  Float kind = Float::float32;
  int8_t strides = -1;  // where in the kernel's pool of strides; -1: dense

  FASTDIFF_INLINE bool given() const { return data != nullptr; }
  FASTDIFF_INLINE char* of(int64_t sample) const { return data + sample * sample_stride; }
};

namespace {

// What is known of the tensors of a call when its kernel is compiled. All but `any` are dense, aligned to 16 bytes, and
// have whole vectors of elements.
enum class Storage {
  float32,   // all are float32
  bfloat16,  // the network's are bfloat16, the others float32
  float16,
  mixed,  // each has a kind of its own
  any,    // and any sizes and strides
};

// Elements that a thread takes at once: what fills 128 bits of the smallest kind.
template <Storage storage>
constexpr int kVector = storage == Storage::float32 ? 4 : 8;

// The lanes of a step: the elements of one quad of words of Philox.
using Four = Two<Two<float>>;

// Floats are copied as the words that they are.
typedef uint32_t __attribute__((may_alias)) Word32;
typedef uint16_t __attribute__((may_alias)) Word16;

// 128 bits.
struct alignas(16) Line {
  uint32_t word[4];
};

FASTDIFF_INLINE Line load_line(const char* from) {
#if defined(__CUDACC__)
  __builtin_assume(__isGlobal(from));
  const uint4 line = *reinterpret_cast<const uint4*>(from);
  return {line.x, line.y, line.z, line.w};
#else
  Line line;
  std::memcpy(&line, from, sizeof line);
  return line;
#endif
}

FASTDIFF_INLINE void store_line(char* to, Line line) {
#if defined(__CUDACC__)
  __builtin_assume(__isGlobal(to));
  *reinterpret_cast<uint4*>(to) = make_uint4(line.word[0], line.word[1], line.word[2], line.word[3]);
#else
  std::memcpy(to, &line, sizeof line);
#endif
}

#if defined(__CUDACC__)
FASTDIFF_INLINE float widen_half(uint32_t half) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(static_cast<uint16_t>(half)));
  return wide;
}

// Two floats in one word, the first in its low half, rounded to nearest even.
FASTDIFF_INLINE uint32_t pack_bfloat16(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
FASTDIFF_INLINE uint32_t pack_float16(float first, float second) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
#else
inline float widen_half(uint32_t half) {
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(static_cast<uint16_t>(half));
}
inline uint32_t pack_bfloat16(float first, float second) {
  using torch::headeronly::detail::round_to_nearest_even;
  return round_to_nearest_even(first) | uint32_t{round_to_nearest_even(second)} << 16;
}
inline uint32_t pack_float16(float first, float second) {
  using torch::headeronly::detail::fp16_ieee_from_fp32_value;
  return fp16_ieee_from_fp32_value(first) | uint32_t{fp16_ieee_from_fp32_value(second)} << 16;
}
#endif

FASTDIFF_INLINE Four four(const float (&value)[4]) { return {{value[0], value[1]}, {value[2], value[3]}}; }

// The kind of a tensor that a network reads or writes.
template <Storage storage>
FASTDIFF_INLINE Float kind_of(const Elements& tensor) {
  if (storage == Storage::float32) return Float::float32;
  if (storage == Storage::bfloat16) return Float::bfloat16;
  if (storage == Storage::float16) return Float::float16;
  return tensor.kind;
}

// Elements as they stand in memory, in one line or in two. They are widened later, so that all loads of a thread are
// under way before the first one is waited for.
struct Vector {
  Line line[2];

  FASTDIFF_INLINE uint32_t half(int i) const {
    return i % 2 ? line[0].word[i / 2] >> 16 : line[0].word[i / 2] & 0xFFFFu;
  }

  FASTDIFF_INLINE Four widened(Float kind, int quad) const {
    float value[4];
    FASTDIFF_UNROLL
    for (int i = 0; i < 4; ++i) value[i] = from_bits(line[quad].word[i]);
    if (kind == Float::bfloat16) {
      FASTDIFF_UNROLL
      for (int i = 0; i < 4; ++i) value[i] = from_bits(half(4 * quad + i) << 16);
    } else if (kind == Float::float16) {
      FASTDIFF_UNROLL
      for (int i = 0; i < 4; ++i) value[i] = widen_half(half(4 * quad + i));
    }
    return four(value);
  }

  FASTDIFF_INLINE void narrow(Float kind, int quad, Four value) {
    if (kind == Float::float32) {
      line[quad] = {bits(value.low.low), bits(value.low.high), bits(value.high.low), bits(value.high.high)};
    } else if (kind == Float::bfloat16) {
      line[0].word[2 * quad] = pack_bfloat16(value.low.low, value.low.high);
      line[0].word[2 * quad + 1] = pack_bfloat16(value.high.low, value.high.high);
    } else {
      line[0].word[2 * quad] = pack_float16(value.low.low, value.low.high);
      line[0].word[2 * quad + 1] = pack_float16(value.high.low, value.high.high);
    }
  }
};

// Where in memory an element lies, in elements from the start of its sample.
FASTDIFF_INLINE int64_t offset_of(const Strides& strides, int64_t element) {
  int64_t offset = 0;
  for (int d = strides.dims - 1; d >= 0; --d) {
    const int64_t rest = element / strides.size[d];
    offset += (element - rest * strides.size[d]) * strides.stride[d];
    element = rest;
  }
  return offset;
}

// Elements one by one, from anywhere, for tensors that are not whole dense vectors.
FASTDIFF_NO_INLINE void gather(const char* from, Float kind, const Strides* strides, int64_t element, int count,
                               Vector& to) {
  std::memset(&to, 0, sizeof to);
  for (int i = 0; i < count; ++i) {
    const int64_t offset = strides == nullptr ? element + i : offset_of(*strides, element + i);
    if (kind == Float::float32) {
      to.line[i / 4].word[i % 4] = reinterpret_cast<const Word32*>(from)[offset];
    } else {
      to.line[0].word[i / 2] |= uint32_t{reinterpret_cast<const Word16*>(from)[offset]} << i % 2 * 16;
    }
  }
}
FASTDIFF_NO_INLINE void scatter(const Vector& from, Float kind, const Strides* strides, int64_t element, int count,
                                char* to) {
  for (int i = 0; i < count; ++i) {
    const int64_t offset = strides == nullptr ? element + i : offset_of(*strides, element + i);
    if (kind == Float::float32) {
      reinterpret_cast<Word32*>(to)[offset] = from.line[i / 4].word[i % 4];
    } else {
      reinterpret_cast<Word16*>(to)[offset] = static_cast<uint16_t>(from.half(i));
    }
  }
}

// A number that is found once, before the loop over vectors: the compiler is not to know how it came about, or it would
// find it anew for each vector.
FASTDIFF_INLINE uint32_t keep(uint32_t number) {
#if defined(__CUDACC__)
  asm("" : "+r"(number));
#endif
  return number;
}
FASTDIFF_INLINE char* keep(char* address) {
#if defined(__CUDACC__)
  asm("" : "+l"(address));
#endif
  return address;
}

// One sample of a tensor.
template <Storage storage>
struct Sample {
  char* data;
  Float kind;
  const Strides* strides;  // null where it is dense
  int64_t elements;

  FASTDIFF_INLINE Vector load(uint32_t vector) const {
    Vector to;
    if constexpr (storage != Storage::any) {
      const char* from = at(vector);
      to.line[0] = load_line(from);
      if (kVector<storage> == 8 && kind == Float::float32) to.line[1] = load_line(from + sizeof(Line));
    } else {
      gather(data, kind, strides, element(vector), whole(vector), to);
    }
    return to;
  }

  FASTDIFF_INLINE void store(uint32_t vector, const Vector& from) const {
    if constexpr (storage != Storage::any) {
      char* to = at(vector);
      store_line(to, from.line[0]);
      if (kVector<storage> == 8 && kind == Float::float32) store_line(to + sizeof(Line), from.line[1]);
    } else {
      scatter(from, kind, strides, element(vector), whole(vector), data);
    }
  }

 private:
  // A sample has at most 2^32 bytes (`Gathering` sees to that), so that one register holds where in it a vector is.
  FASTDIFF_INLINE char* at(uint32_t vector) const {
    return data + vector * static_cast<uint32_t>(kVector<storage> * size_of(kind));
  }
  FASTDIFF_INLINE int64_t element(uint32_t vector) const { return int64_t{vector} * kVector<storage>; }
  // The elements of a vector: fewer in the last one.
  FASTDIFF_INLINE int whole(uint32_t vector) const {
    const int64_t left = elements - element(vector);
    return left < kVector<storage> ? static_cast<int>(left) : kVector<storage>;
  }
};

// A sample of a tensor of the network, and of one that is float32.
template <Storage storage>
FASTDIFF_INLINE Sample<storage> open(const Elements& tensor, const Strides* pool, int64_t sample, int64_t elements) {
  return {keep(tensor.of(sample)), kind_of<storage>(tensor), tensor.strides < 0 ? nullptr : pool + tensor.strides,
          elements};
}
template <Storage storage>
FASTDIFF_INLINE Sample<storage> open_state(const Elements& tensor, const Strides* pool, int64_t sample,
                                           int64_t elements) {
  return {keep(tensor.of(sample)), Float::float32, tensor.strides < 0 ? nullptr : pool + tensor.strides, elements};
}

}  // namespace
}  // namespace fastdiff
