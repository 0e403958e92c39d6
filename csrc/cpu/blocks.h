// Blocks of a sample as the kernels load and store them, with their normals.
#pragma once

#include <cstring>

#include "cpu/kernels.h"
#include "cpu/lanes.h"

namespace fastdiff {
namespace {

// Lanes of one pass through the registers.
using Lanes = SideBySide<Floats, kStepRegisters>::type;
constexpr int kPass = kFloats<Lanes>;
static_assert(kBlock % kPass == 0 && kBlock % (4 * kQuads) == 0, "whole passes in a block");

struct Buffer {
  alignas(64) char bytes[kBlock * sizeof(float)];
  float* floats() { return reinterpret_cast<float*>(bytes); }
};

// One block of a float32 operand: where it is, or a copy in a buffer where it is not a whole dense block.
struct FloatBlock {
  float* data;

  FASTDIFF_INLINE Lanes load(int element) const {
    Lanes lanes;
    fastdiff::load(data + element, lanes);
    return lanes;
  }
  FASTDIFF_INLINE void store(int element, Lanes value) const { fastdiff::store(data + element, value); }
};

// The same for an operand of any kind of floats.
struct Block {
  char* data;
  Float kind;

  FASTDIFF_INLINE Lanes load(int element) const { return load_floats<Lanes>(data, kind, element); }
  FASTDIFF_INLINE void store(int element, Lanes value) const { store_floats(data, kind, element, value); }
};

template <int bytes>
FASTDIFF_INLINE void fetch(const char* data) {
  constexpr int kLine = 64;
  FASTDIFF_UNROLL
  for (int line = 0; line < bytes; line += kLine) __builtin_prefetch(data + line, 0, 0);
}

// The hardware does not fetch ahead across pages of memory: ask for what lies one page further, to be used once. This
// pays for two streams; with a third (guidance) there are more requests than places for them, and steps get slower.
FASTDIFF_INLINE void fetch_next_page(const Block& block) {
  constexpr int kPage = 4096;
  if (block.kind == Float::float32) {
    fetch<kBlock * 4>(block.data + kPage);
  } else {
    fetch<kBlock * 2>(block.data + kPage);
  }
}

// Some block of a sample, whole or a tail.
struct Place {
  int64_t sample, begin;
  int count;

  FASTDIFF_INLINE bool direct(const Operand& operand) const { return count == kBlock && operand.dense(); }

  FASTDIFF_INLINE Block open(const Operand& operand, Buffer& buffer) const {
    return {direct(operand) ? operand.at(sample, begin) : buffer.bytes, operand.kind};
  }
  FASTDIFF_INLINE Block read(const Operand& operand, Buffer& buffer) const {
    if (!direct(operand)) gather(operand, sample, begin, count, kBlock, buffer.bytes);
    return open(operand, buffer);
  }
  FASTDIFF_INLINE FloatBlock open_state(const Operand& operand, Buffer& buffer) const {
    return {reinterpret_cast<float*>(open(operand, buffer).data)};
  }
  FASTDIFF_INLINE FloatBlock read_state(const Operand& operand, Buffer& buffer) const {
    return {reinterpret_cast<float*>(read(operand, buffer).data)};
  }
  FASTDIFF_INLINE void close(const Operand& operand, const Buffer& buffer) const {
    if (!direct(operand)) scatter(operand, sample, begin, count, buffer.bytes);
  }
};

template <class Visit>
FASTDIFF_INLINE void for_each_block(Range range, const Visit& visit) {
  for (int64_t begin = range.begin; begin < range.end; begin += kBlock) {
    const int64_t left = range.end - begin;
    visit(Place{range.sample, begin, static_cast<int>(left < kBlock ? left : kBlock)});
  }
}

// The normals of `count` elements, and zeros up to the end of their last block, for which z has room.
FASTDIFF_INLINE void draw_here(const NoiseKey& key, int64_t begin, int count, float* z) {
  constexpr int kLeast = 4 * kQuads;
  const uint32_t quad = static_cast<uint32_t>(begin / 4);
  const int end = (count + kLeast - 1) / kLeast * kLeast;
  draw_normals<1>(key, quad, draw_normals<kChains>(key, quad, 0, end, z), end, z);
  std::memset(z + end, 0, (kBlock - 1 - (end + kBlock - 1) % kBlock) * sizeof(float));
}

// The same as a call, because the code is long.
__attribute__((noinline)) void draw(const NoiseKey& key, int64_t begin, int count, float* z) {
  draw_here(key, begin, count, z);
}

// The normals of a range, block after block. They are drawn for several blocks at once, which is faster.
class RangeNoise {
 public:
  FASTDIFF_INLINE RangeNoise(const NoiseKey& key, Range range) : key_(key), range_(range) {}

  FASTDIFF_INLINE FloatBlock at(Place place) {
    const int64_t offset = (place.begin - range_.begin) % kStretch;
    if (offset == 0) {
      const int64_t left = range_.end - place.begin;
      draw(key_, place.begin, static_cast<int>(left < kStretch ? left : kStretch), z_);
    }
    return {z_ + offset};
  }

 private:
  static constexpr int kStretch = 4 * kBlock;
  const NoiseKey& key_;
  Range range_;
  alignas(64) float z_[kStretch];
};

}  // namespace
}  // namespace fastdiff
