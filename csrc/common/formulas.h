// The sets of columns of the samplers that most people run, known to the compiler. Every backend compiles a step for
// each of them, and two for all others.
#pragma once

#include "common/columns.h"

namespace fastdiff {
namespace {

constexpr uint64_t set_of() { return 0; }
template <class... Rest>
constexpr uint64_t set_of(int column, Rest... rest) {
  return uint64_t{1} << column | set_of(rest...);
}

// What many samplers may or may not use.
constexpr uint64_t kOptional = set_of(SCALE_IN, CZ, FAST_NORMALS, GUIDED, MODEL_INPUT, FIRST_BAD);

// A set of columns known to the compiler, but for those that stay a question.
template <uint64_t columns_, uint64_t questions = kOptional>
struct Formula {
  static constexpr uint64_t columns = columns_;
  Uses uses;

  static bool fits(Uses uses) { return (uses.bits & ~questions) == columns; }

  FASTDIFF_INLINE bool has(int column) const {
    return (questions >> column & 1) ? uses.has(column) : (columns >> column & 1);
  }
  FASTDIFF_INLINE bool any(int first, int last) const {
    const uint64_t span = ((uint64_t{2} << (last - first)) - 1) << first;
    return (columns & span) || (questions & span && uses.any(first, last));
  }
};

using DdimClipped = Formula<set_of(PX, PO, CLIP, EX, E0, C0, CE)>;
using Ddim = Formula<set_of(PX, PO, EO, C0, CE)>;
using DdimVelocity = Formula<set_of(PX, PO, EX, EO, C0, CE)>;
using AncestralClipped = Formula<set_of(PX, PO, CLIP, CX, C0)>;
using Ancestral = Formula<set_of(PX, PO, CX, C0)>;
using MultistepClipped = Formula<set_of(PX, PO, CLIP, CX, C0, CH0, SLOT)>;
using Multistep = Formula<set_of(PX, PO, CX, C0, CH0, SLOT)>;
// Any other columns, without what few calls have: two weights of guidance, and inpainting.
using Usual = Formula<0, ~set_of(WEIGHTED, K0, KZ)>;

}  // namespace
}  // namespace fastdiff
