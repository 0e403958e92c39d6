// The kernels of a step, and the choice among them.
#pragma once

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/step_launches.h"
#include "cuda/step_thread.h"

namespace fastdiff {
namespace {

// Any set of columns, with what few calls have (Uses) or without (Usual).
template <class Set>
struct AnyColumns {
  template <Storage storage>
  static constexpr int kBlocks = storage == Storage::float32 ? 4 : 3;  // 128 or 168 registers
  static FASTDIFF_INLINE Set uses(const StepTask& task) { return {task.uses}; }
  static FASTDIFF_INLINE Set layout(const StepTask& task) { return {task.layout}; }
};

// One of the formulas: with noise, or without.
template <class F, bool draws>
struct Columns {
  template <Storage>
  static constexpr int kBlocks = 10;  // 48 registers
  // Compiled in, and passed by at run time where there is no such tensor.
  static constexpr uint64_t kWritten = set_of(MODEL_INPUT, FIRST_BAD);
  static constexpr uint64_t kKnown = kWritten | set_of(SCALE_IN, CZ, FAST_NORMALS);
  using Known = Formula<F::columns | kWritten | (draws ? set_of(CZ) : 0), kOptional & ~kKnown>;

  // The table must have the columns in use and no others, or they would stand elsewhere.
  static bool fits(const StepTask& task) {
    constexpr uint64_t columns = (uint64_t{1} << COLUMNS) - 1;
    return ((task.uses.bits & ~(kOptional & ~set_of(SCALE_IN, CZ))) | kWritten) == Known::columns &&
           ((task.uses.bits ^ task.layout.bits) & columns) == 0;
  }
  static FASTDIFF_INLINE Known uses(const StepTask& task) { return {task.uses}; }
  static FASTDIFF_INLINE Known layout(const StepTask& task) { return {task.uses}; }
};

template <class Set, Storage storage, Normals noise>
struct StepBody {
  using Task = StepTask;
  using Shared = Nothing;
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = Set::template kBlocks<storage>;

  template <class Block>
  static FASTDIFF_INLINE void run(const StepTask& task, const Block& block) {
    block.each_thread([&](uint32_t thread) {
      step_thread<storage, noise>(task, Set::layout(task), Set::uses(task), block.sample,
                                  block.index * kThreads + thread, block.count * kThreads);
    });
  }
};

template <class Body>
const char* launch_step_of(const StepTask& task, Queue queue) {
  return launch<Body>(task, {task.samples, blocks_for(task.samples, task.vectors, Body::kThreads, queue)}, queue);
}

template <Storage storage, Normals noise>
const char* launch_any(const StepTask& task, Queue queue) {
  if (Usual::fits(task.uses)) return launch_step_of<StepBody<AnyColumns<Usual>, storage, noise>>(task, queue);
  return launch_step_of<StepBody<AnyColumns<Uses>, storage, noise>>(task, queue);
}

// Launches the kernel of the first set of columns that fits, among none: that of any set.
template <Storage storage, Normals noise>
const char* launch_first(const StepTask& task, Queue queue) {
  if constexpr (storage == Storage::float32) {
    return launch_any<storage, noise>(task, queue);
  } else {
    return launch_step_mixed(task, queue);
  }
}
template <Storage storage, Normals noise, class First, class... Rest>
const char* launch_first(const StepTask& task, Queue queue) {
  using Set = Columns<First, noise != Normals::none>;
  if (Set::fits(task)) return launch_step_of<StepBody<Set, storage, noise>>(task, queue);
  return launch_first<storage, noise, Rest...>(task, queue);
}

// The same columns with a network whose input is scaled.
template <class F>
using Scaled = Formula<F::columns | set_of(SCALE_IN)>;

template <Storage storage, Normals noise>
const char* launch_best(const StepTask& task, Queue queue) {
  if constexpr (noise == Normals::none) {
    return launch_first<storage, noise, DdimClipped, Ddim, DdimVelocity, AncestralClipped, Ancestral, MultistepClipped,
                        Multistep, Scaled<DdimClipped>, Scaled<Ddim>, Scaled<MultistepClipped>, Scaled<Multistep>>(
        task, queue);
  } else {
    return launch_first<storage, noise, DdimClipped, Ddim, DdimVelocity, AncestralClipped, Ancestral>(task, queue);
  }
}

// Calls launch with the normals to draw.
template <class Launch>
const char* with_normals(const StepTask& task, const Launch& launch) {
  using std::integral_constant;
  const bool draws = task.uses.bits & set_of(CZ, DZ, KZ);
  if (!draws || task.z.data != nullptr) return launch(integral_constant<Normals, Normals::none>());
  if (task.uses.bits >> FAST_NORMALS & 1) return launch(integral_constant<Normals, Normals::fast>());
  return launch(integral_constant<Normals, Normals::exact>());
}

}  // namespace
}  // namespace fastdiff
