// The instruction sets that there are kernels for, and the choice among them.
#pragma once

#include "cpu/kernels.h"

namespace fastdiff {

// The numbers that the op `cpu_level` speaks.
enum Level : int64_t { kScalar, kAvx2, kAvx512 };

// The best one that this machine has.
inline Level best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C, which Clang 14 cannot ask for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2) return avx512 ? kAvx512 : kAvx2;
#endif
  return kScalar;
}

inline const Kernels& kernels_of(Level level) {
#if defined(__x86_64__)
  if (level == kAvx512) return kAvx512Kernels;
  if (level == kAvx2) return kAvx2Kernels;
#endif
  return kScalarKernels;
}

// The kernels in use: those of the best level, or of the one that was asked for.
const Kernels& kernels();

}  // namespace fastdiff
