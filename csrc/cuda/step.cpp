// A step as its kernels take it.
#include "tensors/step_call.h"

#include "cuda/ops.h"
#include "cuda/step_arguments.h"
#include "cuda/step_launches.h"

namespace fastdiff {

Gathering fill(const StepCall& call, StepTask& task) {
  const StepTensors& t = call.tensors;
  const Table& table = call.table;
  Gathering all(call.pool, call.shape);
  check(table.column_stride == 1 || table.columns <= 1,
        "the columns of table must be next to each other for the cuda backend: pass table.contiguous()");
  task.uses = t.uses;
  task.layout.bits = static_cast<uint64_t>(call.layout);
  task.samples = call.shape.samples;
  task.elements = call.shape.elements;
  task.branches = static_cast<int32_t>(t.branches);
  task.x = all.add(t.x);
  task.out = all.add(t.out);
  task.uncond = all.add(t.uncond);
  task.variance = all.add(t.variance);
  task.y = all.add(t.y);
  task.z = all.add(t.z);
  task.x0_out = all.add(t.x0_out);
  task.known = all.add(t.known);
  task.mask = all.add(t.mask);
  task.model_input = all.add(t.model_input, t.branches * call.shape.samples);
  task.branch_stride = task.samples * task.model_input.sample_stride;
  for (int k = 0; k < kHistorySlots; ++k) task.history[k] = all.add(t.history[k]);
  task.history_slots = call.history_slots;
  task.history_stride = call.history_slots > 1 ? t.history[1].data - t.history[0].data : 0;
  task.table = table.data;
  task.rows = table.rows;
  task.row_stride = table.row_stride;
  task.row = call.rows;
  task.seed = call.keys.seed;
  task.sample = call.keys.sample;
  task.w = call.w;
  task.w_uncond = call.w_uncond;
  task.scale = call.scale;
  task.threshold = call.threshold;
  task.first_bad = const_cast<int64_t*>(call.first_bad.data);
  task.first_bad_stride = call.first_bad.stride;
  all.copy_strides(task.strides);
  return all;
}

namespace {

// Whether the tensors of the network that are given are all of a kind.
bool network_is(const StepTensors& t, Float kind) {
  for (const Operand* operand : {&t.out, &t.uncond, &t.variance, &t.model_input}) {
    if (operand->given() && operand->kind != kind) return false;
  }
  return true;
}

}  // namespace

void cuda::step(const StepArguments& arguments, void* stream) {
  StepCall call(arguments, kCudaDevice);
  call.add_rest(arguments);
  if (call.shape.samples * call.shape.elements == 0) return;
  StepTask task;
  const Gathering all = fill(call, task);
  const Queue queue = {arguments.x.device.index, stream};
  task.vectors = vectors_of(call.shape, all.wide() ? 4 : 8);
  if (all.wide()) {
    check_launch(launch_step_float32(task, queue));
  } else if (!all.dense()) {
    check_launch(launch_step_any(task, queue));
  } else if (network_is(call.tensors, Float::bfloat16)) {
    check_launch(launch_step_bfloat16(task, queue));
  } else if (network_is(call.tensors, Float::float16)) {
    check_launch(launch_step_float16(task, queue));
  } else {
    check_launch(launch_step_mixed(task, queue));
  }
}

}  // namespace fastdiff
