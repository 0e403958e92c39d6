#include "cpu/compile_kernels.h"

namespace fastdiff {
const Kernels kScalarKernels = kKernels;
}
