#include "cpu/level.h"

#include <atomic>
#include <optional>

#include <torch/csrc/stable/library.h>

#include "tensors/check.h"

namespace fastdiff {
namespace {

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

const Kernels& kernels() { return kernels_of(current_level().load(std::memory_order_relaxed)); }

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, m) { m.impl("cpu_level", TORCH_BOX(&cpu_level)); }

}  // namespace fastdiff
