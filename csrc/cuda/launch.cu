#include "cuda/launch.h"

#include <algorithm>
#include <atomic>
#include <limits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <cstring>
#endif

namespace fastdiff {
namespace {

#if defined(__CUDACC__)
// Makes a device the current one of the thread for a while.
class Current {
 public:
  explicit Current(int device) {
    error_ = cudaGetDevice(&before_);
    moved_ = error_ == cudaSuccess && before_ != device;
    if (moved_) error_ = cudaSetDevice(device);
  }
  ~Current() {
    if (moved_) cudaSetDevice(before_);
  }
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool moved_ = false;
  cudaError_t error_;
};

const char* in_words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

int multiprocessors(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int count = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (count > 0) return count;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  if (device < kDevices) known[device] = count;
  return count;
}
#else
int multiprocessors(int) { return 1; }
#endif

}  // namespace

int64_t blocks_for(int64_t samples, int64_t vectors, int threads, Queue queue) {
  constexpr int64_t kBlocksEach = 20, kMostTurns = 8;  // two rounds of the 10 blocks that fit a multiprocessor
  const int64_t blocks = (vectors + threads - 1) / threads;
  const int64_t turns = samples * blocks / (kBlocksEach * multiprocessors(queue.device));
  const int64_t each = std::clamp<int64_t>(turns, 1, kMostTurns);
  return std::min(kMostBlocks, (blocks + each - 1) / each);
}

#if defined(__CUDACC__)
const char* launch(const void* kernel, Grid grid, int threads, void* task, Queue queue) {
  if (grid.samples * grid.blocks == 0) return nullptr;
  if (grid.samples > std::numeric_limits<int32_t>::max()) return "it has more than 2^31 - 1 samples";
  const Current current(queue.device);
  if (current.error() != cudaSuccess) return in_words(current.error());
  const dim3 blocks(static_cast<unsigned>(grid.samples), static_cast<unsigned>(grid.blocks));
  return in_words(cudaLaunchKernel(kernel, blocks, dim3(threads), &task, 0, static_cast<cudaStream_t>(queue.stream)));
}

const char* clear(void* data, int64_t bytes, Queue queue) {
  const Current current(queue.device);
  if (current.error() != cudaSuccess) return in_words(current.error());
  return in_words(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(queue.stream)));
}
#else
const char* clear(void* data, int64_t bytes, Queue) {
  std::memset(data, 0, static_cast<size_t>(bytes));
  return nullptr;
}
#endif

}  // namespace fastdiff
