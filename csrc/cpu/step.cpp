// The op `fastdiff::step`, and how its arguments become rows and operands for the kernels.
#include "cpu/step.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "cpu/check.h"
#include "cpu/level.h"
#include "cpu/parallel.h"

namespace fastdiff {
namespace {

constexpr int64_t kColumnBits = (int64_t{1} << COLUMNS) - 1;
constexpr int64_t kLayoutBits = (int64_t{1} << (STORES_EPS + 1)) - 1;

bool in_layout(int64_t layout, int column) { return layout >> column & 1; }

}  // namespace

StepCall::StepCall(const StepArguments& arguments)
    : layout(arguments.layout),
      shape(arguments.x),
      table(arguments.table, __builtin_popcountll(arguments.layout & kColumnBits)),
      rows(whole_numbers("row", arguments.row, shape.samples)) {
  check((layout & ~kLayoutBits) == 0, "layout ", layout, " names no set of columns");
  Uses& uses = tensors.uses;
  uses.bits = static_cast<uint64_t>(layout);
  tensors.samples = shape.samples;
  tensors.x = state("x", arguments.x, shape, Access::read, pool);
  tensors.out = image("out", arguments.out, shape, Access::read, pool);
  if (arguments.uncond) {
    check(arguments.w.has_value(), "uncond needs w, the guidance scale of each sample");
    tensors.uncond = image("uncond", *arguments.uncond, shape, Access::read, pool);
    w = floats("w", *arguments.w, shape.samples);
    uses.add(GUIDED);
  }
  if (arguments.scale) {
    scale = floats("scale", *arguments.scale, shape.samples);
    uses.add(SCALED);
  }
  if (arguments.threshold) {
    check(uses.has(CLIP), "threshold needs the column clip");
    threshold = floats("threshold", *arguments.threshold, shape.samples);
    uses.add(THRESHOLDED);
  }
  for (int64_t b = 0; b < shape.samples; ++b) table.check_row("row", rows[b]);
}

Row StepCall::row(int64_t sample) const {
  const Uses& uses = tensors.uses;
  const int64_t index = rows[sample];
  Row result;
  int64_t position = 0;
  for (int column = 0; column < COLUMNS; ++column) {
    if (in_layout(layout, column)) result.c[column] = table.at(index, position++);
  }
  if (!in_layout(layout, DY)) result.c[DY] = 1.0f;
  if (uses.has(SCALE_IN)) result.next_scale_in = table.at(std::min(index + 1, table.rows - 1), 0);
  if (uses.has(GUIDED)) result.w = w[sample];
  if (uses.has(SCALED)) result.scale = scale[sample];
  if (uses.has(THRESHOLDED)) {
    const float clip = result.c[CLIP];
    const float bound = threshold[sample] > clip ? threshold[sample] : clip;
    result.c[CLIP] = bound;
    result.clip_ratio = bound == clip ? 1.0f : clip / bound;
  }
  return result;
}

namespace {

void add_anchor(StepCall& call, const MaybeView& y) {
  Uses& uses = call.tensors.uses;
  if (y) {
    call.tensors.y = state("y", *y, call.shape, Access::write, call.pool);
    uses.add(ANCHORED);
    uses.add(DY, uses.any(DX, DZ));
  }
  check(y || !(uses.has(CY) || uses.any(DX, DZ)), "the table has columns of the anchor state, which need y");
}

void add_history(StepCall& call, const MaybeView& history) {
  const Uses& uses = call.tensors.uses;
  const int slots = history ? history_slots(*history, call.shape, call.pool, call.tensors.history) : 0;
  for (int k = 0; k < kHistorySlots; ++k) {
    check(k < slots || !(uses.has(CH0 + k) || uses.has(DH0 + k)), "the table reads history slot ", k,
          ", and history has ", slots, " slots");
  }
  if (!uses.has(SLOT)) return;
  for (int64_t b = 0; b < call.shape.samples; ++b) {
    const float slot = call.row(b).c[SLOT];
    check(slot >= -1.0f && slot < static_cast<float>(slots) && slot == std::floor(slot),
          "the table writes history slot ", slot, ", and history has ", slots, " slots");
  }
}

// Returns the keys where noise is to be drawn.
Keys add_noise(StepCall& call, const MaybeView& key, const MaybeView& z) {
  if (!call.tensors.uses.draws_noise()) return {};
  if (z) {
    call.tensors.z = state("z", *z, call.shape, Access::read, call.pool);
    return {};
  }
  check(key.has_value(), "the table has columns of noise, which need key or z");
  return Keys(*key, call.shape.samples);
}

void add_outputs(StepCall& call, const MaybeView& model_input, const MaybeView& x0_out) {
  StepTensors& tensors = call.tensors;
  if (model_input) {
    const int64_t samples = call.shape.samples;
    const int64_t given = model_input->dims > 0 ? model_input->size[0] : 0;
    tensors.branches = samples ? std::max<int64_t>(1, given / samples) : 1;
    tensors.model_input = image("model_input", *model_input, call.shape, Access::write, call.pool, tensors.branches);
    tensors.uses.add(MODEL_INPUT);
  }
  if (x0_out) {
    tensors.x0_out = state("x0_out", *x0_out, call.shape, Access::write, call.pool);
    tensors.uses.add(X0_OUT);
  }
}

// A kernel reads all that it needs of an element before it writes there, and nothing else.
void check_all_apart(const StepTensors& t, const Shape& shape) {
  const std::pair<const char*, const Operand*> read[] = {
      {"out", &t.out}, {"uncond", &t.uncond}, {"variance", &t.variance}, {"z", &t.z}};
  const std::pair<const char*, const Operand*> written[] = {{"x", &t.x}, {"y", &t.y}, {"x0_out", &t.x0_out}};
  for (const auto& [read_name, from] : read) {
    if (!from->given()) continue;
    for (const auto& [name, to] : written) check_apart(name, *to, read_name, *from, shape);
    for (const Operand& slot : t.history) check_apart("history", slot, read_name, *from, shape);
    check_apart("model_input", t.model_input, read_name, *from, shape, t.branches);
  }
}

// Lowers first_bad of a sample; its ranges may be in the hands of several threads.
void note_bad(int64_t* first_bad, int64_t code) {
  int64_t seen = __atomic_load_n(first_bad, __ATOMIC_RELAXED);
  while (code < seen &&
         !__atomic_compare_exchange_n(first_bad, &seen, code, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace

void step(const StepArguments& arguments) {
  StepCall call(arguments);
  StepTensors& tensors = call.tensors;
  const Uses& uses = tensors.uses;
  check_own_memory("x", arguments.x);
  if (!uses.has(CZ)) tensors.uses.remove(CV);
  check(arguments.variance || !uses.has(CV), "the table has the column cv, which needs variance");
  if (uses.has(CV)) tensors.variance = image("variance", *arguments.variance, call.shape, Access::read, call.pool);
  add_anchor(call, arguments.y);
  add_history(call, arguments.history);
  const Keys keys = add_noise(call, arguments.key, arguments.z);
  add_outputs(call, arguments.model_input, arguments.x0_out);
  check_all_apart(tensors, call.shape);
  PerSample<int64_t> bad;
  if (arguments.first_bad) {
    check_own_memory("first_bad", *arguments.first_bad);
    bad = whole_numbers("first_bad", *arguments.first_bad, call.shape.samples);
    tensors.uses.add(FIRST_BAD);
  }

  const bool draws = keys.seed.data != nullptr;
  const Kernels& kernel = kernels();
  for_each_range(call.shape.samples, call.shape.elements, draws ? kNoiseGrain : kGrain, [&](Range range) {
    const int64_t b = range.sample;
    const int64_t index = call.rows[b];
    NoiseKey noise;
    if (draws) noise = noise_key(keys.seed[b], keys.sample[b], static_cast<uint32_t>(index), kStepStream);
    const int not_finite = kernel.step(tensors, call.row(b), noise, range);
    if (not_finite)
      note_bad(const_cast<int64_t*>(&bad.data[b * bad.stride]), 2 * index + (not_finite & kOutput ? 0 : 1));
  });
}

namespace {

void step_op(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
             const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& key, const MaybeTensor& model_input,
             const MaybeTensor& first_bad, const MaybeTensor& variance, const MaybeTensor& scale,
             const MaybeTensor& threshold, const MaybeTensor& y, const MaybeTensor& history, const MaybeTensor& z,
             const MaybeTensor& x0_out) {
  step({x, out, table, layout, row, view_of(uncond), view_of(w), view_of(key), view_of(model_input), view_of(first_bad),
        view_of(variance), view_of(scale), view_of(threshold), view_of(y), view_of(history), view_of(z),
        view_of(x0_out)});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("step", TORCH_BOX(&step_op)); }

}  // namespace fastdiff
