// The instruction set that the kernels use: the best that this machine has, or the one that was asked for.
#pragma once

#include "cpu/kernels.h"

namespace fastdiff {

const Kernels& kernels();

}  // namespace fastdiff
