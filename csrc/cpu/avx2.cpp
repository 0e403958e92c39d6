// What the standard library defines must not be compiled for this instruction set, or the linker could give it to all.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define FASTDIFF_AVX2
#include "cpu/compile_kernels.h"

namespace fastdiff {
const Kernels kAvx2Kernels = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
