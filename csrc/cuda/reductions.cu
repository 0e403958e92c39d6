#include <algorithm>

#include "cuda/reduction_body.h"

namespace fastdiff {
namespace {

template <Storage storage, class Set>
const char* search(ThresholdTask task, Queue queue) {
  constexpr struct {
    int shift, width;
  } kDigits[] = {{20, 11}, {10, 10}, {0, 10}};
  const int64_t samples = task.step.samples;
  const Grid every = {samples, blocks_for(samples, task.step.vectors, kReduceThreads, queue)}, one = {samples, 1};
  const char* error = nullptr;
  for (const auto& digit : kDigits) {
    task.shift = digit.shift;
    task.width = digit.width;
    if (error == nullptr) error = launch<CountDigit<storage, Set>>(task, every, queue);
    if (error == nullptr) error = launch<ChooseDigit>(task, one, queue);
  }
  if (error == nullptr) error = launch<FindGreater<storage, Set>>(task, every, queue);
  return error != nullptr ? error : launch<Interpolate>(task, one, queue);
}

// Sums over parts of each sample, and then what `Result` makes of them.
template <template <Storage> class Part, class Result, class Task>
const char* launch_sums(const Task& task, bool dense, Queue queue) {
  const int64_t parts_each = parts_of(task.elements);
  const Grid parts = {task.samples, std::min(kMostBlocks, parts_each)};
  const char* error =
      dense ? launch<Part<Storage::mixed>>(task, parts, queue) : launch<Part<Storage::any>>(task, parts, queue);
  return error != nullptr ? error : launch<Result>(task, {task.samples, 1}, queue);
}

}  // namespace

const char* launch_guidance_rescale(const RescaleTask& task, bool dense, Queue queue) {
  return launch_sums<RescalePart, RescaleFactor>(task, dense, queue);
}

const char* launch_inner_products(const ProductsTask& task, bool dense, Queue queue) {
  return launch_sums<ProductsPart, Products>(task, dense, queue);
}

const char* launch_threshold(const ThresholdTask& task, bool dense, Queue queue) {
  if (Usual::fits(task.step.uses)) {
    return dense ? search<Storage::mixed, Usual>(task, queue) : search<Storage::any, Usual>(task, queue);
  }
  return dense ? search<Storage::mixed, Uses>(task, queue) : search<Storage::any, Uses>(task, queue);
}

}  // namespace fastdiff
