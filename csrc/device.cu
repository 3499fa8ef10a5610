// The CUDA devices there are, and what goes wrong with one.
#include <cuda_runtime.h>

#include <string>

#include "kernels/cuda.hpp"
#include "mfmd.hpp"

namespace mfmd {

int cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());  // no driver, or no device: that is an answer, not an error to keep
  return 0;
}

namespace cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(std::string("the CUDA device has a problem with ") + what + ": " + cudaGetErrorString(status));
}

static int of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "its number");
  check(cudaDeviceGetAttribute(&value, attribute, device), "its properties");
  return value;
}
int multiprocessors() { return of_device(cudaDevAttrMultiProcessorCount); }
int block_memory() { return of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

}  // namespace cuda
}  // namespace mfmd
