// Elements of an operand that are not a whole dense block, in a buffer.
#pragma once

#include "tensors/operand.h"

namespace fastdiff {

// Copies `count` elements of a sample to a buffer and fills it with zeros up to `capacity`.
void gather(const Operand& from, int64_t sample, int64_t begin, int count, int capacity, void* buffer);

// Copies `count` elements of a buffer back to a sample.
void scatter(const Operand& to, int64_t sample, int64_t begin, int count, const void* buffer);

}  // namespace fastdiff
