#include "tensors/step_call.h"

#include <algorithm>
#include <utility>

#include "tensors/check.h"

namespace fastdiff {
namespace {

constexpr int64_t kColumnBits = (int64_t{1} << COLUMNS) - 1;
constexpr int64_t kLayoutBits = (int64_t{1} << (FAST_NORMALS + 1)) - 1;

}  // namespace

StepCall::StepCall(const StepArguments& arguments, DeviceType backend)
    : layout(arguments.layout),
      shape("x", arguments.x, backend),
      table(arguments.table, __builtin_popcountll(arguments.layout & kColumnBits), shape),
      rows(whole_numbers("row", arguments.row, shape)) {
  check((layout & ~kLayoutBits) == 0, "layout ", layout, " names no set of columns");
  Uses& uses = tensors.uses;
  uses.bits = static_cast<uint64_t>(layout);
  tensors.samples = shape.samples;
  tensors.x = state("x", arguments.x, shape, Access::read, pool);
  tensors.out = image("out", arguments.out, shape, Access::read, pool);
  if (arguments.uncond) {
    check(arguments.w.has_value(), "uncond needs w, the guidance scale of each sample");
    tensors.uncond = image("uncond", *arguments.uncond, shape, Access::read, pool);
    w = floats("w", *arguments.w, shape);
    uses.add(GUIDED);
    if (arguments.w_uncond) {
      w_uncond = floats("w_uncond", *arguments.w_uncond, shape);
      uses.add(WEIGHTED);
    }
  }
  if (arguments.scale) {
    scale = floats("scale", *arguments.scale, shape);
    uses.add(SCALED);
  }
  if (arguments.threshold) {
    check(uses.has(CLIP), "threshold needs the column clip");
    threshold = floats("threshold", *arguments.threshold, shape);
    uses.add(THRESHOLDED);
  }
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
  const int slots = call.history_slots =
      history ? history_slots(*history, call.shape, call.pool, call.tensors.history) : 0;
  for (int k = 0; k < kHistorySlots; ++k) {
    check(k < slots || !(uses.has(CH0 + k) || uses.has(DH0 + k)), "the table reads history slot ", k,
          ", and history has ", slots, " slots");
  }
}

void add_noise(StepCall& call, const MaybeView& key, const MaybeView& z) {
  if (!draws_noise(call.tensors.uses)) return;
  if (z) {
    call.tensors.z = state("z", *z, call.shape, Access::read, call.pool);
    return;
  }
  check(key.has_value(), "the table has columns of noise, which need key or z");
  call.keys = Keys(*key, call.shape);
}

void add_known(StepCall& call, const MaybeView& known, const MaybeView& mask) {
  StepTensors& tensors = call.tensors;
  if (!inpaints(tensors.uses)) return;
  check(mask.has_value(), "the table has columns of what is known, which need mask");
  tensors.mask = state("mask", *mask, call.shape, Access::read, call.pool);
  check(known || !tensors.uses.has(K0), "the table has the column k0, which needs known");
  if (tensors.uses.has(K0)) tensors.known = state("known", *known, call.shape, Access::read, call.pool);
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
  const std::pair<const char*, const Operand*> read[] = {{"out", &t.out},           {"uncond", &t.uncond},
                                                         {"variance", &t.variance}, {"z", &t.z},
                                                         {"known", &t.known},       {"mask", &t.mask}};
  const std::pair<const char*, const Operand*> written[] = {{"x", &t.x}, {"y", &t.y}, {"x0_out", &t.x0_out}};
  for (const auto& [read_name, from] : read) {
    if (!from->given()) continue;
    for (const auto& [name, to] : written) check_apart(name, *to, read_name, *from, shape);
    for (const Operand& slot : t.history) check_apart("history", slot, read_name, *from, shape);
    check_apart("model_input", t.model_input, read_name, *from, shape, t.branches);
  }
}

}  // namespace

void StepCall::add_rest(const StepArguments& arguments) {
  Uses& uses = tensors.uses;
  check_own_memory("x", arguments.x);
  if (!uses.has(CZ)) uses.remove(CV);
  check(arguments.variance || !uses.has(CV), "the table has the column cv, which needs variance");
  if (uses.has(CV)) tensors.variance = image("variance", *arguments.variance, shape, Access::read, pool);
  add_anchor(*this, arguments.y);
  add_history(*this, arguments.history);
  add_noise(*this, arguments.key, arguments.z);
  add_known(*this, arguments.known, arguments.mask);
  add_outputs(*this, arguments.model_input, arguments.x0_out);
  check_all_apart(tensors, shape);
  if (arguments.first_bad) {
    check_own_memory("first_bad", *arguments.first_bad);
    first_bad = whole_numbers("first_bad", *arguments.first_bad, shape);
    uses.add(FIRST_BAD);
  }
}

}  // namespace fastdiff
