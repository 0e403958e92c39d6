// One row of a plan on lanes of elements: the equations of docs/step.md in their order of rounding.
//
// `io` loads and stores the lanes: x(), out(), uncond(), variance(), y(), history(k), z(), known(), mask() and
// store_*(value).
#pragma once

#include "common/columns.h"
#include "common/normal.h"

namespace fastdiff {
namespace {

template <class F>
FASTDIFF_INLINE F add_term(bool used, float coefficient, F value, F sum) {
  return used ? fma(splat<F>(coefficient), value, sum) : sum;
}

// What a sum starts from: the first fma with -0 is the rounded product, down to the sign of a zero.
template <class F>
FASTDIFF_INLINE F no_terms() {
  return splat<F>(-0.0f);
}

template <class F>
FASTDIFF_INLINE F clip(F value, float bound) {
  return at_most(at_least(value, splat<F>(-bound)), splat<F>(bound));
}

template <class F>
FASTDIFF_INLINE F exponential(F a) {
  constexpr float kExp[] = {
      5.0e-1f,
      1.666666567325592e-1f,
      4.166579619050026e-2f,
      8.333452045917511e-3f,
      1.398199936375022e-3f,
      1.9875691214110702e-4f,
  };
  constexpr float kShift = 12582912.0f;
  a = at_most(at_least(a, splat<F>(-87.0f)), splat<F>(88.0f));
  const F shifted = fma(a, splat<F>(1.4426950216293335f), splat<F>(kShift));
  const F n = shifted - kShift;
  const F r = fma(n, splat<F>(2.1219444170128554e-4f), fma(n, splat<F>(-0.693359375f), a));
  const F p = fma(polynomial(kExp, r), r * r, r) + 1.0f;
  const F two_to_the_n = from_bits((bits(shifted) - bits(kShift) + 127u) << 23);
  return p * two_to_the_n;
}

template <class F, class Uses, class IO>
FASTDIFF_INLINE F guided(const Uses& uses, const Row& row, IO& io) {
  F out = io.out();
  if (uses.has(GUIDED) && uses.has(WEIGHTED)) {
    out = fma(splat<F>(row.w), out, row.w_uncond * io.uncond());
  } else if (uses.has(GUIDED) && row.w != 1.0f) {
    const F uncond = io.uncond();
    out = fma(splat<F>(row.w), out - uncond, uncond);
  }
  return uses.has(SCALED) ? splat<F>(row.scale) * out : out;
}

// The x0-prediction before it is clipped.
template <class F, class Uses>
FASTDIFF_INLINE F predict_x0(const Uses& uses, const Row& row, F x, F out) {
  if (!uses.any(PX, PO)) return splat<F>(0.0f);
  return add_term(uses.has(PO), row.c[PO], out, add_term(uses.has(PX), row.c[PX], x, no_terms<F>()));
}

template <class F, class Uses>
FASTDIFF_INLINE F clip_x0(const Uses& uses, const Row& row, F x0) {
  if (!uses.has(CLIP)) return x0;
  x0 = clip(x0, row.c[CLIP]);
  return uses.has(THRESHOLDED) ? x0 * row.clip_ratio : x0;
}

template <class F, class Uses>
FASTDIFF_INLINE F predict_eps(const Uses& uses, const Row& row, F x, F out, F x0) {
  if (!uses.any(EX, E0)) return splat<F>(0.0f);
  F eps = add_term(uses.has(EX), row.c[EX], x, no_terms<F>());
  eps = add_term(uses.has(EO), row.c[EO], out, eps);
  return add_term(uses.has(E0), row.c[E0], x0, eps);
}

// The terms of x' (first = CX) or y' (first = DX); the columns of both stand in the same order.
template <int first, class F, class Uses, class IO>
FASTDIFF_INLINE F next_state(const Uses& uses, const Row& row, IO& io, F x, F x0, F eps, F z) {
  static_assert(CZ - CX == 8 && DZ - DX == 8, "the columns of x' and of y' stand in one order");
  constexpr int kY = 1, kX0 = 2, kEps = 3, kHistory = 4, kZ = 8;
  F sum = add_term(uses.has(first), row.c[first], x, no_terms<F>());
  if (uses.has(first + kY)) sum = fma(splat<F>(row.c[first + kY]), io.y(), sum);
  sum = add_term(uses.has(first + kX0), row.c[first + kX0], x0, sum);
  sum = add_term(uses.has(first + kEps), row.c[first + kEps], eps, sum);
  if (uses.any(first + kHistory, first + kHistory + kHistorySlots - 1)) {
    for (int k = 0; k < kHistorySlots; ++k) {
      const int column = first + kHistory + k;
      if (uses.has(column)) sum = fma(splat<F>(row.c[column]), io.history(k), sum);
    }
  }
  return add_term(uses.has(first + kZ), row.c[first + kZ], z, sum);
}

// x' where the mask is 0, what is known, at its level of noise, where it is 1.
template <class F, class Uses, class IO>
FASTDIFF_INLINE F inpainted(const Uses& uses, const Row& row, IO& io, F x_next, F z) {
  const F known = uses.has(K0) ? fma(splat<F>(row.c[K0]), io.known(), no_terms<F>()) : no_terms<F>();
  const F keep = add_term(uses.has(KZ), row.c[KZ], z, known);
  const F mask = io.mask();
  return select_one(mask, keep, fma(mask, keep - x_next, x_next));
}

template <class F, class Uses, class IO>
FASTDIFF_INLINE void step(const Uses& uses, const Row& row, IO&& io) {
  const F x = io.x();
  const F out = guided<F>(uses, row, io);
  const F x0 = clip_x0(uses, row, predict_x0(uses, row, x, out));
  const F eps = predict_eps(uses, row, x, out, x0);

  const F z = draws_noise(uses) ? io.z() : splat<F>(0.0f);
  F spread = z;
  if (uses.has(CV)) spread = exponential(row.c[CV] * io.variance()) * z;

  F x_next = splat<F>(0.0f);
  if (uses.any(CX, CZ)) x_next = next_state<CX>(uses, row, io, x, x0, eps, spread);
  if (inpaints(uses)) x_next = inpainted(uses, row, io, x_next, z);
  if (writes_anchor(uses)) io.store_y(next_state<DX>(uses, row, io, x, x0, eps, z));
  if (uses.has(SLOT)) io.store_history(row.c[SLOT], uses.has(STORES_EPS) ? eps : x0);

  io.store_x(x_next);
  if (uses.has(X0_OUT)) io.store_x0(x0);
  if (uses.has(MODEL_INPUT)) io.store_model_input(uses.has(SCALE_IN) ? x_next * row.next_scale_in : x_next);
  if (uses.has(FIRST_BAD)) io.check(out, x_next);
}

// x_t of the forward process; by other coefficients of x0 and z, what a network is to predict.
template <class F>
FASTDIFF_INLINE F q_sample(float alpha, float sigma, F x0, F z) {
  return fma(splat<F>(sigma), z, alpha * x0);
}

}  // namespace
}  // namespace fastdiff
