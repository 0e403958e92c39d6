// How a kernel's body is run: by the threads of a GPU, or one after another on the host (tests/cuda).
//
// A body is a struct with a type Task (the kernel's arguments), a type Shared (what the threads of a block share),
// kThreads of a block, kBlocks (at least so many are to fit a multiprocessor) and `run(task, block)`.
#pragma once

#include "common/portable.h"
#include "cuda/queue.h"

namespace fastdiff {

// Blocks of one sample: at most kMostBlocks, so kernels take more than one share where need be.
constexpr int64_t kMostBlocks = 65535;

struct Grid {
  int64_t samples, blocks;
};

// Returns in one line what went wrong, or null.
const char* launch(const void* kernel, Grid grid, int threads, void* task, Queue queue);

// Blocks of a sample for kernels whose threads take vector after vector: enough to fill the GPU twice, and then more
// vectors for each thread, up to 8: it looks up its sample once.
int64_t blocks_for(int64_t samples, int64_t vectors, int threads, Queue queue);

// Makes `bytes` of memory 0.
const char* clear(void* data, int64_t bytes, Queue queue);

namespace {

struct Nothing {};

#if defined(__CUDACC__)
template <class Shared>
struct Block {
  Shared& shared;
  int64_t sample;
  uint32_t index, count;  // among the blocks of the sample

  template <class Run>
  FASTDIFF_INLINE void each_thread(const Run& run) const {
    run(threadIdx.x);
  }
  // The same; what one phase wrote the next one reads.
  template <class Run>
  FASTDIFF_INLINE void phase(const Run& run) const {
    run(threadIdx.x);
    __syncthreads();
  }
};

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kBlocks)
    kernel(const __grid_constant__ typename Body::Task task) {
  __shared__ typename Body::Shared shared;
  Body::run(task, Block<typename Body::Shared>{shared, blockIdx.x, blockIdx.y, gridDim.y});
}

template <class Body>
const char* launch(typename Body::Task task, Grid grid, Queue queue) {
  static_assert(sizeof task <= 4096, "what every driver takes as a kernel's arguments");
  return launch(reinterpret_cast<const void*>(kernel<Body>), grid, Body::kThreads, &task, queue);
}
#else
template <class Shared, int threads>
struct Block {
  Shared& shared;
  int64_t sample;
  uint32_t index, count;

  template <class Run>
  void each_thread(const Run& run) const {
    for (uint32_t thread = 0; thread < threads; ++thread) run(thread);
  }
  template <class Run>
  void phase(const Run& run) const {
    each_thread(run);
  }
};

template <class Body>
const char* launch(const typename Body::Task& task, Grid grid, Queue) {
  for (int64_t sample = 0; sample < grid.samples; ++sample) {
    for (int64_t index = 0; index < grid.blocks; ++index) {
      typename Body::Shared shared;
      Body::run(task, Block<typename Body::Shared, Body::kThreads>{shared, sample, static_cast<uint32_t>(index),
                                                                   static_cast<uint32_t>(grid.blocks)});
    }
  }
  return nullptr;
}
#endif

}  // namespace
}  // namespace fastdiff
