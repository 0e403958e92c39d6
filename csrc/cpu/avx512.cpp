// What the standard library defines must not be compiled for this instruction set, or the linker could give it to all.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// GCC's own header sets unused lanes from a variable without a value.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define FASTDIFF_AVX512
#include "cpu/compile_kernels.h"

namespace fastdiff {
const Kernels kAvx512Kernels = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
