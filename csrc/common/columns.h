// The columns of a plan in the order of fastdiff.plan.NEUTRAL, and what a call of `step` uses besides.
#pragma once

#include "common/portable.h"

namespace fastdiff {

// clang-format off
enum Column : int {
  SCALE_IN, PX, PO, CLIP,
  EX, EO, E0,
  CX, CY, C0, CE, CH0, CH1, CH2, CH3, CZ, CV,
  DX, DY, D0, DE, DH0, DH1, DH2, DH3, DZ,
  K0, KZ,
  SLOT,
  COLUMNS,
  // Beyond the columns: what the history keeps, which normals are drawn, and which optional tensors there are.
  STORES_EPS = COLUMNS,
  FAST_NORMALS,
  SCALED, GUIDED, WEIGHTED, THRESHOLDED, ANCHORED, X0_OUT, MODEL_INPUT, FIRST_BAD
};
// clang-format on

constexpr int kHistorySlots = 4;

// A set of columns. Kernels may use a type that knows some of them in its place (formulas.h).
struct Uses {
  uint64_t bits = 0;

  FASTDIFF_INLINE bool has(int column) const { return bits >> column & 1; }
  FASTDIFF_INLINE bool any(int first, int last) const { return bits >> first & ((uint64_t{2} << (last - first)) - 1); }
  FASTDIFF_INLINE void add(int column, bool used = true) { bits |= uint64_t{used} << column; }
  FASTDIFF_INLINE void remove(int column) { bits &= ~(uint64_t{1} << column); }
};

template <class Uses>
FASTDIFF_INLINE bool draws_noise(const Uses& uses) {
  return uses.has(CZ) || uses.has(DZ) || uses.has(KZ);
}
template <class Uses>
FASTDIFF_INLINE bool writes_anchor(const Uses& uses) {
  return uses.has(ANCHORED) && uses.any(DX, DZ);
}
template <class Uses>
FASTDIFF_INLINE bool inpaints(const Uses& uses) {
  return uses.any(K0, KZ);
}

// The coefficients of one sample: its row of the table, and its own numbers.
struct Row {
  float c[COLUMNS];
  float next_scale_in;
  float w, w_uncond;
  float scale;
  float clip_ratio;
};

}  // namespace fastdiff
