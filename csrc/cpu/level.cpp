#include "cpu/level.h"

#include <atomic>
#include <optional>

#include <torch/csrc/stable/library.h>

#include "cpu/check.h"

namespace fastdiff {
namespace {

// The numbers that the op `cpu_level` speaks.
enum Level : int64_t { kScalar, kAvx2, kAvx512 };

Level best_level() {
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

std::atomic<Level>& current_level() {
  static std::atomic<Level> level{best_level()};
  return level;
}

int64_t cpu_level(std::optional<int64_t> level) {
  if (level) {
    check(*level >= kScalar && *level <= best_level(), "cpu_level must be 0..", int64_t{best_level()},
                    " on this machine, got ", *level);
    current_level() = static_cast<Level>(*level);
  }
  return current_level();
}

}  // namespace

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (current_level().load(std::memory_order_relaxed)) {
    case kAvx512:
      return kAvx512Kernels;
    case kAvx2:
      return kAvx2Kernels;
    case kScalar:
      break;
  }
#endif
  return kScalarKernels;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, m) { m.impl("cpu_level", TORCH_BOX(&cpu_level)); }

}  // namespace fastdiff
