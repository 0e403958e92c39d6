// The kernels of one instruction set. A file for each of them includes this one, and nothing else does.
#pragma once

// The lanes come first: the templates of common/ use what they declare.
#include "cpu/lanes.h"

#include "cpu/noise_kernels.h"
#include "cpu/step_kernel.h"

namespace fastdiff {
namespace {

constexpr Kernels kKernels = {
    step_range,  normal_range,     q_sample_range, noise_loss_range, noise_loss_backward_range,
    guide_range, predict_x0_range,
};

}  // namespace
}  // namespace fastdiff
