// A call of the step from outside, checked and taken in: what all backends share, and the ops that compute a part of
// it.
#pragma once

#include "tensors/step_tensors.h"
#include "tensors/tensors.h"

namespace fastdiff {

// The arguments of the op `fastdiff::step`.
struct StepArguments {
  View x, out, table;
  int64_t layout = 0;
  View row;
  MaybeView uncond, w, key, model_input, first_bad, variance, scale, threshold, y, history, z, x0_out, w_uncond, known,
      mask;
};

// The op `fastdiff::step` of a backend.
template <void (*step)(const StepArguments& arguments)>
void step_op(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
             const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& key, const MaybeTensor& model_input,
             const MaybeTensor& first_bad, const MaybeTensor& variance, const MaybeTensor& scale,
             const MaybeTensor& threshold, const MaybeTensor& y, const MaybeTensor& history, const MaybeTensor& z,
             const MaybeTensor& x0_out, const MaybeTensor& w_uncond, const MaybeTensor& known,
             const MaybeTensor& mask) {
  step({x,
        out,
        table,
        layout,
        row,
        view_of(uncond),
        view_of(w),
        view_of(key),
        view_of(model_input),
        view_of(first_bad),
        view_of(variance),
        view_of(scale),
        view_of(threshold),
        view_of(y),
        view_of(history),
        view_of(z),
        view_of(x0_out),
        view_of(w_uncond),
        view_of(known),
        view_of(mask)});
}

struct StepCall {
  // Takes in what the x0-prediction needs.
  StepCall(const StepArguments& arguments, DeviceType backend);
  StepCall(const StepCall&) = delete;  // `tensors` points into `pool`

  // Takes in the rest. The numbers of the table and the rows are not looked at: they may be where the host cannot read.
  void add_rest(const StepArguments& arguments);

  int64_t layout;
  Shape shape;
  Table table;
  PerSample<int64_t> rows;
  PerSample<float> w, w_uncond, scale, threshold;
  Keys keys;  // given where noise is to be drawn
  PerSample<int64_t> first_bad;
  int history_slots = 0;
  StridesPool pool;
  StepTensors tensors;
};

}  // namespace fastdiff
