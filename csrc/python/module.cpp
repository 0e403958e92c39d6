// The Python module `fastdiff._C`: a way from Python to the step that goes past torch's dispatcher.
//
// The dispatcher takes two of the three microseconds of a small step. A sampling loop needs nothing of what it does:
// its tensors are plain, there is no gradient, and nobody traces it. So `step` reads them through DLPack's table, and
// hands a call in which anything is not a plain tensor to the op. What DLPack cannot tell, the caller sees to: that no
// tensor has its negation pending (Tensor.is_neg).
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>

#include "cpu/step.h"
#include "python/dlpack.h"

#if defined(FASTDIFF_CUDA)
#include "cuda/ops.h"
#endif

namespace fastdiff {
namespace {

constexpr int kArguments = 20, kRequired = 5, kLayout = 3;
// Elements from which other Python threads may run during a step.
constexpr int64_t kLong = 32768;

// What `bind` was given.
PyObject* tensor_type = nullptr;
PyObject *op = nullptr, *cuda_op = nullptr;
const dlpack::ExchangeApi* exchange = nullptr;

ScalarType type_of(const dlpack::Tensor& tensor) {
  if (tensor.type_lanes != 1) return ScalarType::Undefined;
  const auto is = [&](uint8_t code, uint8_t bits) { return tensor.type_code == code && tensor.type_bits == bits; };
  if (is(dlpack::kFloat, 32)) return ScalarType::Float;
  if (is(dlpack::kBfloat, 16)) return ScalarType::BFloat16;
  if (is(dlpack::kFloat, 16)) return ScalarType::Half;
  if (is(dlpack::kInt, 64)) return ScalarType::Long;
  return ScalarType::Undefined;
}

DeviceType device_type_of(const dlpack::Tensor& tensor) {
  if (tensor.device_type == dlpack::kCpu) return DeviceType::cpu;
  return tensor.device_type == dlpack::kCuda ? DeviceType::cuda : DeviceType::other;
}

bool read(PyObject* object, View& view) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != tensor_type) return false;
  dlpack::Tensor tensor;
  if (exchange->view(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.size = tensor.shape;
  view.stride = tensor.strides;
  view.dims = tensor.ndim;
  view.type = type_of(tensor);
  view.device = {device_type_of(tensor), tensor.device_id};
  // Without memory of its own (torch's lazy zeros), or with strides left out, it is not plain.
  return tensor.data != nullptr && tensor.strides != nullptr;
}

bool read(PyObject* object, MaybeView& view) { return object == Py_None || read(object, view.emplace()); }

bool read(PyObject* object, int64_t& number) {
  number = PyLong_AsLongLong(object);
  if (number != -1 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

// Whether all arguments are what the step can take as it is.
bool read(PyObject* const* given, Py_ssize_t count, StepArguments& to) {
  if (exchange == nullptr || count < kRequired || count > kArguments) return false;
  View* const required[kRequired] = {&to.x, &to.out, &to.table, nullptr, &to.row};
  MaybeView* const optional[] = {&to.uncond,   &to.w,      &to.key,       &to.model_input, &to.first_bad,
                                 &to.variance, &to.scale,  &to.threshold, &to.y,           &to.history,
                                 &to.z,        &to.x0_out, &to.w_uncond,  &to.known,       &to.mask};
  for (int k = 0; k < kRequired; ++k) {
    if (!(k == kLayout ? read(given[k], to.layout) : read(given[k], *required[k]))) return false;
  }
  for (int k = kRequired; k < count; ++k) {
    if (!read(given[k], *optional[k - kRequired])) return false;
  }
  return true;
}

PyObject* call_op(PyObject* op, PyObject* const* given, Py_ssize_t count) {
  if (op == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "fastdiff._C is not bound to torch: import fastdiff and use that");
    return nullptr;
  }
  PyObject* arguments = PyTuple_New(count);
  if (arguments == nullptr) return nullptr;
  for (Py_ssize_t k = 0; k < count; ++k) {
    Py_INCREF(given[k]);
    PyTuple_SetItem(arguments, k, given[k]);
  }
  PyObject* result = PyObject_CallObject(op, arguments);
  Py_DECREF(arguments);
  return result;
}

template <class Step>
void without_python(const Step& step) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    step();
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

template <class Step>
PyObject* none_or_error(const Step& step) {
  try {
    step();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* python_step(PyObject*, PyObject* const* given, Py_ssize_t count) {
  StepArguments arguments;
  if (!read(given, count, arguments)) return call_op(op, given, count);
  return none_or_error([&] {
    const Shape shape("x", arguments.x, DeviceType::cpu);
    if (shape.samples * shape.elements < kLong) {
      step(arguments);
    } else {
      without_python([&] { step(arguments); });
    }
  });
}

#if defined(FASTDIFF_CUDA)
PyObject* python_step_cuda(PyObject*, PyObject* const* given, Py_ssize_t count) {
  StepArguments arguments;
  void* stream = nullptr;
  if (!read(given, count, arguments)) return call_op(cuda_op, given, count);
  if (arguments.x.device.type == DeviceType::cuda &&
      exchange->current_work_stream(dlpack::kCuda, arguments.x.device.index, &stream) != 0) {
    return nullptr;
  }
  return none_or_error([&] { cuda::step(arguments, stream); });
}
#endif

PyObject* bind(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "bind takes a type, a capsule and two ops");
    return nullptr;
  }
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(given[1], "dlpack_exchange_api"));
  if (api == nullptr) {
    PyErr_Clear();
    Py_RETURN_FALSE;
  }
  if (api->major_version != 1 || api->view == nullptr || api->current_work_stream == nullptr) Py_RETURN_FALSE;
  Py_INCREF(given[0]);
  Py_INCREF(given[2]);
  Py_INCREF(given[3]);
  tensor_type = given[0];
  op = given[2];
  cuda_op = given[3];
  exchange = api;
  Py_RETURN_TRUE;
}

PyCFunction function(PyObject* (*fast)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast));
}

PyMethodDef methods[] = {
    {"step", function(python_step), METH_FASTCALL,
     "fastdiff::step by position, past torch's dispatcher where all tensors are plain ones."},
#if defined(FASTDIFF_CUDA)
    {"step_cuda", function(python_step_cuda), METH_FASTCALL, "The same for fastdiff::step.cuda."},
#endif
    {"bind", function(bind), METH_FASTCALL,
     "bind(torch.Tensor, its DLPack exchange table, step, step.cuda) -> whether the table can be used."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace fastdiff

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&fastdiff::definition); }
