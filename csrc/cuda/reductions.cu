#include <algorithm>

#include "cuda/reduction_body.h"

namespace fastdiff {
namespace {

template <Storage storage>
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
    if (error == nullptr) error = launch<CountDigit<storage>>(task, every, queue);
    if (error == nullptr) error = launch<ChooseDigit>(task, one, queue);
  }
  if (error == nullptr) error = launch<FindGreater<storage>>(task, every, queue);
  return error != nullptr ? error : launch<Interpolate>(task, one, queue);
}

}  // namespace

const char* launch_guidance_rescale(const RescaleTask& task, bool dense, Queue queue) {
  const int64_t parts_each = parts_of(task.elements);
  const Grid parts = {task.samples, std::min(kMostBlocks, parts_each)};
  const char* error = dense ? launch<RescalePart<Storage::mixed>>(task, parts, queue)
                            : launch<RescalePart<Storage::any>>(task, parts, queue);
  return error != nullptr ? error : launch<RescaleFactor>(task, {task.samples, 1}, queue);
}

const char* launch_threshold(const ThresholdTask& task, bool dense, Queue queue) {
  return dense ? search<Storage::mixed>(task, queue) : search<Storage::any>(task, queue);
}

}  // namespace fastdiff
