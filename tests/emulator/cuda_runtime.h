// CUDA on the CPU, for tests: the part of the runtime and of the language that csrc/*.cu use, so that the very kernels run without a GPU, compiled
// by the host's compiler. The threads of a block are fibers; a barrier, a shuffle or a vote waits until all of them, or all of the warp, have
// come to one. Which fiber runs next is drawn by chance (seeded), so that code which leans on an order fails here too. Blocks run one after the other,
// from one drawn by chance on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __host__
#define __device__
#define __global__ static
#define __shared__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

void barrier();                                                       // of the block
const std::uint64_t* exchange(unsigned mask, std::uint64_t value);    // values of all lanes of the warp, which take part
void wait_for_the_kernel_before();                                    // here it has ended always; that all threads say so is what is checked
void run(dim3 grid, dim3 threads, std::size_t shared, bool waits, const std::function<void()>& kernel);
bool load(const void* kernel);                                        // whether it was loaded before

template <class T> inline T shuffle(T value, int from) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(0xffffffffu, bits)[from];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Nearest, ten bits of mantissa, halves away from zero.
inline float tf32(float x) {
  if (!std::isfinite(x)) return x;
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
// As csrc/kernels/cuda.hpp has it, every lane with its share of the tiles.
inline void multiply_tile(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  const float share[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  float of[32][6];
  for (int k = 0; k < 6; k += 2) {
    std::uint64_t two;
    std::memcpy(&two, share + k, sizeof two);
    const std::uint64_t* all = exchange(0xffffffffu, two);
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&of[lane][k], all + lane, sizeof two);
  }
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  for (int e = 0; e < 4; ++e)
    for (int k = 0; k < 8; ++k) c[e] += tf32(of[4 * g + k % 4][e / 2 + k / 4 * 2]) * tf32(of[4 * (2 * t + e % 2) + k % 4][4 + k / 4]);
}

}  // namespace emulator

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp() { static_cast<void>(emulator::exchange(0xffffffffu, 0)); }
template <class T> inline T __shfl_xor_sync(unsigned, T value, int step) { return emulator::shuffle(value, static_cast<int>(threadIdx.x % 32) ^ step); }
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const std::uint64_t* votes = emulator::exchange(mask, vote);
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= static_cast<unsigned>(votes[lane]) << lane;
  return all;
}
inline void cudaGridDependencySynchronize() { emulator::wait_for_the_kernel_before(); }
inline void cudaTriggerProgrammaticLaunchCompletion() {}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int atomicAdd(int* p, int x) { const int before = *p; *p += x; return before; }
inline int atomicMax(int* p, int x) { const int before = *p; *p = std::max(before, x); return before; }
using std::isfinite;

// ---------------------------------------------------------------------------------------------- the runtime
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorStreamCaptureUnsupported };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr unsigned cudaStreamNonBlocking = 1;
struct emulated_stream {
  bool recording = false;
  bool behind_kernel = false;  // what was recorded last is one
  std::vector<std::function<void()>> graph;
};
using cudaStream_t = emulated_stream*;
using cudaGraph_t = std::vector<std::function<void()>>*;
using cudaGraphExec_t = std::vector<std::function<void()>>*;
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { int programmaticStreamSerializationAllowed; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes { int ptxVersion; };
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) { attributes->ptxVersion = 90; return cudaSuccess; }

inline cudaError_t emulate(cudaStream_t stream, std::function<void()> work, bool kernel = false) {
  if (stream) stream->behind_kernel = kernel;
  if (stream && stream->recording) stream->graph.push_back(std::move(work));
  else work();
  return cudaSuccess;
}
// Two things are errors here that a driver may or may not put up with: to load a kernel while a graph is recorded, and there to launch one that may begin
// early behind anything but a kernel.
template <class... P, class... A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(P...), A... arguments) {
  if (c->blockDim.x > 1024 || c->dynamicSmemBytes > 227 * 1024 || c->gridDim.y > 65535 || c->gridDim.x == 0 || c->gridDim.y == 0) return cudaErrorInvalidValue;
  const bool early = c->numAttrs > 0, recording = c->stream && c->stream->recording;
  if (!emulator::load(reinterpret_cast<const void*>(kernel)) && recording) return cudaErrorStreamCaptureUnsupported;
  if (early && recording && !c->stream->behind_kernel) return cudaErrorStreamCaptureUnsupported;
  return emulate(c->stream, [config = *c, early, kernel, arguments...] {
    emulator::run(config.gridDim, config.blockDim, config.dynamicSmemBytes, early, [&] { kernel(arguments...); });
  }, true);
}
cudaError_t cudaMalloc(void** p, std::size_t bytes);  // filled with rubbish
inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) { return cudaMalloc(p, bytes); }
inline cudaError_t cudaFree(void* p) { std::free(p); return cudaSuccess; }
inline cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return emulate(stream, [=] { std::memcpy(to, from, bytes); });
}
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t stream) {
  return emulate(stream, [=] { std::memset(p, value, bytes); });
}
using cudaEvent_t = int*;
constexpr unsigned cudaEventDisableTiming = 2;
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = nullptr; return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t s) { return s && s->recording ? cudaErrorInvalidValue : cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t, unsigned) { return s && s->recording ? cudaErrorInvalidValue : cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  *status = s && s->recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { *s = new emulated_stream; return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { delete s; return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  s->recording = true;
  s->behind_kernel = false;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  s->recording = false;
  *graph = new std::vector<std::function<void()>>(std::move(s->graph));
  s->graph.clear();
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) { *exec = new std::vector<std::function<void()>>(*graph); return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (stream && stream->recording) return cudaErrorInvalidValue;
  for (const auto& work : *exec) work();
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete graph; return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { delete exec; return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaErrorInvalidValue ? "invalid value" : "not while a graph is recorded"; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaErrorInvalidValue; }  // the one device is current, and setting it would replace a host's context
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 227 * 1024;
  return cudaSuccess;
}
