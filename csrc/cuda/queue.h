// Where kernels are launched.
#pragma once

namespace fastdiff {

struct Queue {
  int device;
  void* stream;  // a cudaStream_t
};

}  // namespace fastdiff
