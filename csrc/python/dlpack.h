// What is needed of DLPack 1.3 (github.com/dmlc/dlpack): a tensor in memory, and the table by which a library gives
// its Python tensors away as such. The layout of both is DLPack's ABI; torch's own copy of the header is not stable.
#pragma once

#include <cstdint>

namespace fastdiff::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major_version, minor_version;
  const void* older_api;
  const void *allocate, *export_owned, *import_owned;
  // Returns 0, or -1 with a Python exception set. What `out` points to belongs to the Python object.
  int (*view)(void* python_object, Tensor* out);
  // Puts into `stream` the one on which work for a device is queued. Returns 0, or -1 with a Python exception set.
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace fastdiff::dlpack
