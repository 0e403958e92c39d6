#include "tensors/tensors.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "common/columns.h"
#include "tensors/check.h"

namespace fastdiff {
namespace {

// Elements of a sample whose quads a 32-bit word can count.
constexpr int64_t kMostElements = int64_t{1} << 34;

const char* name_of(DeviceType backend) { return backend == DeviceType::cpu ? "cpu" : "cuda"; }

Float kind_of(const char* name, const View& view) {
  switch (view.type) {
    case ScalarType::Float:
      return Float::float32;
    case ScalarType::BFloat16:
      return Float::bfloat16;
    case ScalarType::Half:
      return Float::float16;
    default:
      refuse(name, " must be float32, bfloat16 or float16 for the ", name_of(view.device.type),
             " backend; float64 runs on eager");
  }
}

std::string words(const Device& device) {
  if (device.type == DeviceType::cpu) return "the CPU";
  return device.type == DeviceType::cuda ? "cuda:" + std::to_string(device.index) : "another kind of device";
}

void check_place(const char* name, const View& view, const Shape& shape) {
  const Device& wanted = shape.like.device;
  check(view.device == wanted, name, " is on ", words(view.device), " and must be on ", words(wanted),
        ", like the other tensors of the call");
}

// The dims of one sample without those of size 1, those that lie one behind the other made one.
Strides coalesce(const int64_t* sizes, const int64_t* strides, int64_t dims) {
  Strides merged;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 1) continue;
    const int last = merged.dims - 1;
    if (last >= 0 && merged.stride[last] == sizes[d] * strides[d]) {
      merged.size[last] *= sizes[d];
      merged.stride[last] = strides[d];
    } else {
      merged.size[merged.dims] = sizes[d];
      merged.stride[merged.dims++] = strides[d];
    }
  }
  return merged;
}

bool is_dense(const Strides& strides) { return strides.dims == 0 || (strides.dims == 1 && strides.stride[0] == 1); }

// Sizes, strides and data of [samples, ...], without `skip` dims before it.
Operand operand(const char* name, const View& view, int64_t skip, const Shape& shape, StridesPool& pool,
                int64_t branches) {
  check_place(name, view, shape);
  const int64_t *size = view.size + skip, *stride = view.stride + skip;
  const int64_t dims = view.dims - skip;
  bool same = dims == shape.like.dims && size[0] == shape.samples * branches;
  for (int64_t d = 1; same && d < dims; ++d) same = size[d] == shape.like.size[d];
  check(same, name, " must have the shape of the other image tensors of the call");

  Operand result;
  result.kind = kind_of(name, view);
  result.data = static_cast<char*>(view.data);
  result.sample_stride = stride[0] * size_of(result.kind);
  const Strides merged = coalesce(size + 1, stride + 1, dims - 1);
  if (!is_dense(merged)) {
    pool.entry[pool.used] = merged;
    result.strides = &pool.entry[pool.used++];
  }
  return result;
}

}  // namespace

View::View(const Tensor& tensor)
    : data(tensor.data_ptr()),
      size(tensor.sizes().data()),
      stride(tensor.strides().data()),
      dims(tensor.dim()),
      type(tensor.scalar_type()),
      device{tensor.is_cpu()    ? DeviceType::cpu
             : tensor.is_cuda() ? DeviceType::cuda
                                : DeviceType::other,
             tensor.get_device_index()} {}

MaybeView view_of(const MaybeTensor& tensor) { return tensor ? MaybeView(*tensor) : std::nullopt; }

// By the rule that each stride steps over all that lies within.
void check_own_memory(const char* name, const View& view) {
  std::array<std::pair<int64_t, int64_t>, kMaxDims + 1> dims;
  int count = 0;
  for (int64_t d = 0; d < view.dims && count <= kMaxDims; ++d) {
    if (view.size[d] == 0) return;
    if (view.size[d] > 1) dims[count++] = {view.stride[d], view.size[d]};
  }
  std::sort(dims.begin(), dims.begin() + count);
  int64_t reach = 0;
  for (int d = 0; d < count; ++d) {
    check(dims[d].first > reach, name, " is written, so its elements must not share memory: pass a copy");
    reach += dims[d].first * (dims[d].second - 1);
  }
}

Shape::Shape(const char* name, const View& like, DeviceType backend) : like(like), samples(0), elements(1) {
  check(like.device.type == backend, name, " is on ", words(like.device), ", where the ", name_of(backend),
        " backend cannot run");
  check(like.dims >= 1 && like.dims <= kMaxDims, "image tensors must have 1 to ", kMaxDims,
        " dimensions, the samples first");
  samples = like.size[0];
  for (int64_t d = 1; d < like.dims; ++d) elements *= like.size[d];
  check(elements <= kMostElements, "a sample can have at most 2^34 elements");
}

Operand image(const char* name, const View& view, const Shape& shape, Access access, StridesPool& pool,
              int64_t branches) {
  if (access == Access::write) check_own_memory(name, view);
  return operand(name, view, 0, shape, pool, branches);
}

Operand state(const char* name, const View& view, const Shape& shape, Access access, StridesPool& pool) {
  const Operand result = image(name, view, shape, access, pool);
  check(result.kind == Float::float32, name, " must be float32");
  return result;
}

namespace {

// One past the last byte that the samples of an operand reach.
const char* end_of(const Operand& operand, int64_t samples, int64_t elements) {
  int64_t last = elements - 1;
  if (!operand.dense()) {
    last = 0;
    for (int d = 0; d < operand.strides->dims; ++d) last += (operand.strides->size[d] - 1) * operand.strides->stride[d];
  }
  return operand.at(samples - 1, last + 1);
}

// Strides of samples and elements alike, in elements.
Strides all_strides(const Operand& operand, int64_t samples, int64_t elements) {
  Strides all = operand.dense() ? Strides{1, {elements}, {1}} : *operand.strides;
  all.size[all.dims] = samples;
  all.stride[all.dims++] = operand.sample_stride / size_of(operand.kind);
  return all;
}

bool equal(const Strides& a, const Strides& b) {
  return a.dims == b.dims && std::equal(a.size, a.size + a.dims, b.size) &&
         std::equal(a.stride, a.stride + a.dims, b.stride);
}

// Whether two elements lie `distance` apart, where each stride steps over all that lies within.
bool reaches(Strides strides, int64_t distance) {
  if (strides.dims == 0) return distance == 0;
  const int widest = static_cast<int>(std::max_element(strides.stride, strides.stride + strides.dims) - strides.stride);
  const int64_t size = strides.size[widest], stride = strides.stride[widest];
  --strides.dims;
  strides.size[widest] = strides.size[strides.dims];
  strides.stride[widest] = strides.stride[strides.dims];
  if (stride == 0) return reaches(strides, distance);
  const int64_t steps = distance / stride;
  for (int64_t k = steps - 1; k <= steps + 1; ++k) {
    if (k > -size && k < size && reaches(strides, distance - k * stride)) return true;
  }
  return false;
}

// Whether writing `to` may change what is still to be read from `from`.
bool collide(const Operand& to, const Operand& from, int64_t samples, int64_t elements) {
  if (end_of(to, samples, elements) <= from.data || end_of(from, samples, elements) <= to.data) return false;
  const Strides strides = all_strides(to, samples, elements);
  const int64_t bytes = from.data - to.data;
  if (to.kind != from.kind || bytes % size_of(to.kind) != 0) return true;
  if (!equal(strides, all_strides(from, samples, elements))) return true;
  return bytes != 0 && reaches(strides, bytes / size_of(to.kind));
}

}  // namespace

void check_apart(const char* written_name, const Operand& written, const char* read_name, const Operand& read,
                 const Shape& shape, int64_t branches) {
  if (!written.given() || !read.given() || shape.samples * shape.elements == 0) return;
  for (int64_t branch = 0; branch < branches; ++branch) {
    Operand to = written;
    to.data = written.at(branch * shape.samples, 0);
    check(!collide(to, read, shape.samples, shape.elements), written_name, " is written and shares memory with ",
          read_name, " other than element for element: pass a copy");
  }
}

int history_slots(const View& view, const Shape& shape, StridesPool& pool, Operand* slot) {
  check(view.dims >= 2 && view.size[0] <= kHistorySlots, "history must be [slots, samples, ...] with at most ",
        kHistorySlots, " slots");
  check_own_memory("history", view);
  const Operand first = operand("history", view, 1, shape, pool, 1);
  check(first.kind == Float::float32, "history must be float32");
  const int slots = static_cast<int>(view.size[0]);
  for (int k = 0; k < slots; ++k) {
    slot[k] = first;
    slot[k].data += k * view.stride[0] * size_of(first.kind);
  }
  return slots;
}

namespace {

template <class Number>
PerSample<Number> per_sample(const char* name, const View& view, const Shape& shape, ScalarType type,
                             const char* type_name) {
  check_place(name, view, shape);
  check(view.type == type && view.dims == 1 && view.size[0] == shape.samples, name, " must be ", type_name,
        " with one number for each of ", shape.samples, " samples");
  return {static_cast<const Number*>(view.data), view.stride[0]};
}

}  // namespace

Tensor new_vector(const Tensor& like, int64_t size, ScalarType type) {
  return torch::stable::new_empty(like, std::vector<int64_t>{size}, std::make_optional(type));
}

Tensor one_per_sample(const Tensor& like, int64_t samples) { return new_vector(like, samples, ScalarType::Float); }

Tensor three_per_sample(const Tensor& like, int64_t samples) {
  return torch::stable::new_empty(like, std::vector<int64_t>{3, samples}, std::make_optional(ScalarType::Float));
}

PerSample<int64_t> whole_numbers(const char* name, const View& view, const Shape& shape) {
  return per_sample<int64_t>(name, view, shape, ScalarType::Long, "int64");
}

PerSample<float> floats(const char* name, const View& view, const Shape& shape) {
  return per_sample<float>(name, view, shape, ScalarType::Float, "float32");
}

Table::Table(const View& view, int64_t columns_, const Shape& shape) {
  check_place("table", view, shape);
  check(view.type == ScalarType::Float && view.dims == 2 && view.size[1] == columns_, "table must be float32 [rows, ",
        columns_, "] for this call");
  data = static_cast<const float*>(view.data);
  rows = view.size[0];
  columns = columns_;
  row_stride = view.stride[0];
  column_stride = view.stride[1];
}

void Table::check_row(const char* name, int64_t row) const {
  check(row >= 0 && row < rows, name, " ", row, " is not in the table, which has ", rows, " rows");
}

Keys::Keys(const View& view, const Shape& shape) {
  check_place("key", view, shape);
  check(view.type == ScalarType::Long && view.dims == 2 && view.size[0] == 2 && view.size[1] == shape.samples,
        "key must be int64 [2, ", shape.samples, "]: seeds and sample indices");
  const auto* data = static_cast<const int64_t*>(view.data);
  seed = {data, view.stride[1]};
  sample = {data + view.stride[0], view.stride[1]};
}

Draws::Draws(const View& key, const View& draw, int64_t stream_, const Shape& shape)
    : keys(key, shape), draw(whole_numbers("draw", draw, shape)), stream(static_cast<uint32_t>(stream_)) {
  check(stream_ >= 0 && stream_ < 256, "stream must be 0..255, got ", stream_);
}

}  // namespace fastdiff
