// Whole numbers in memory that many threads change. A C++ compiler's program has one thread.
#pragma once

#include "common/portable.h"

namespace fastdiff {
namespace {

#if defined(__CUDACC__)
FASTDIFF_INLINE void atomic_min(int64_t* to, int64_t value) {
  atomicMin(reinterpret_cast<long long*>(to), static_cast<long long>(value));
}
FASTDIFF_INLINE void atomic_min(uint32_t* to, uint32_t value) { atomicMin(to, value); }
FASTDIFF_INLINE void atomic_add(uint32_t* to, uint32_t value) { atomicAdd(to, value); }
FASTDIFF_INLINE void atomic_add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
#else
template <class Number>
inline void atomic_min(Number* to, Number value) {
  if (value < *to) *to = value;
}
template <class Number>
inline void atomic_add(Number* to, Number value) {
  *to += value;
}
#endif

}  // namespace
}  // namespace fastdiff
