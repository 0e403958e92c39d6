#include "cuda/task.h"

#if !defined(FASTDIFF_CUDA_ON_HOST)
#include <dlfcn.h>
#endif

namespace fastdiff {

#if defined(FASTDIFF_CUDA_ON_HOST)
Queue current_queue(const Device& device) { return {device.index, nullptr}; }
#else
// Only a torch with CUDA has the function that tells its stream. It is looked up, not linked, so that a torch without
// CUDA can load the extension too.
Queue current_queue(const Device& device) {
  using CurrentStream = int32_t (*)(int32_t device, void** stream);
  static const auto current_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<CurrentStream>(symbol);
  }();
  check(current_stream != nullptr, "torch does not tell its CUDA stream: install a torch with CUDA");
  Queue queue = {device.index, nullptr};
  check(current_stream(device.index, &queue.stream) == 0, "torch has no stream for cuda:", device.index);
  return queue;
}
#endif

}  // namespace fastdiff
