#include "cpu/operand.h"

#include <cstring>

namespace fastdiff {
namespace {

// Calls visit(offset, stride, run) for stretches along the last dimension that together make the `count` elements.
template <class Visit>
void for_each_run(const Strides& strides, int64_t begin, int64_t count, const Visit& visit) {
  const int last = strides.dims - 1;
  int64_t index[kMaxDims];
  int64_t offset = 0;
  for (int d = last; d >= 0; --d) {
    index[d] = begin % strides.size[d];
    begin /= strides.size[d];
    offset += index[d] * strides.stride[d];
  }
  while (count > 0) {
    const int64_t left = strides.size[last] - index[last];
    const int64_t run = left < count ? left : count;
    visit(offset, strides.stride[last], run);
    count -= run;
    index[last] += run;
    offset += run * strides.stride[last];
    for (int d = last; d > 0 && index[d] == strides.size[d]; --d) {
      offset += strides.stride[d - 1] - strides.size[d] * strides.stride[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

// Floats are copied as the words that they are.
typedef uint32_t __attribute__((may_alias)) Word32;
typedef uint16_t __attribute__((may_alias)) Word16;

template <class Word>
void gather_words(const Word* from, const Strides& strides, int64_t begin, int count, Word* to) {
  for_each_run(strides, begin, count, [&](int64_t offset, int64_t stride, int64_t run) {
    for (int64_t i = 0; i < run; ++i) *to++ = from[offset + i * stride];
  });
}

template <class Word>
void scatter_words(Word* to, const Strides& strides, int64_t begin, int count, const Word* from) {
  for_each_run(strides, begin, count, [&](int64_t offset, int64_t stride, int64_t run) {
    for (int64_t i = 0; i < run; ++i) to[offset + i * stride] = *from++;
  });
}

}  // namespace

void gather(const Operand& from, int64_t sample, int64_t begin, int count, int capacity, void* buffer) {
  const int64_t size = size_of(from.kind);
  if (from.dense()) {
    std::memcpy(buffer, from.at(sample, begin), count * size);
  } else if (size == 4) {
    gather_words(reinterpret_cast<const Word32*>(from.at(sample, 0)), *from.strides, begin, count,
                 static_cast<Word32*>(buffer));
  } else {
    gather_words(reinterpret_cast<const Word16*>(from.at(sample, 0)), *from.strides, begin, count,
                 static_cast<Word16*>(buffer));
  }
  std::memset(static_cast<char*>(buffer) + count * size, 0, (capacity - count) * size);
}

void scatter(const Operand& to, int64_t sample, int64_t begin, int count, const void* buffer) {
  const int64_t size = size_of(to.kind);
  if (to.dense()) {
    std::memcpy(to.at(sample, begin), buffer, count * size);
  } else if (size == 4) {
    scatter_words(reinterpret_cast<Word32*>(to.at(sample, 0)), *to.strides, begin, count,
                  static_cast<const Word32*>(buffer));
  } else {
    scatter_words(reinterpret_cast<Word16*>(to.at(sample, 0)), *to.strides, begin, count,
                  static_cast<const Word16*>(buffer));
  }
}

}  // namespace fastdiff
