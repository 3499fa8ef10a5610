// What the CUDA kernels share: vectors of channels, sums over a warp, and how a kernel is launched. The twin of simd.hpp.
#pragma once

#include <cuda_runtime.h>

#include "../mfmd.hpp"
#include "device.hpp"
#include "tensor.hpp"

namespace mfmd {
namespace cuda {

constexpr unsigned kWarp = 0xffffffffu;

extern __shared__ __align__(16) unsigned char shared_memory[];
template <class T> __device__ inline T* shared() { return reinterpret_cast<T*>(shared_memory); }

template <class T> struct __align__(16) Four {
  T v[4];
};
template <class T> __device__ inline Four<T> load(const T* p) { return *reinterpret_cast<const Four<T>*>(p); }
template <class T> __device__ inline void store(T* p, const Four<T>& a) { *reinterpret_cast<Four<T>*>(p) = a; }
template <class T> __device__ inline Four<T> operator+(Four<T> a, const Four<T>& b) {
  for (int k = 0; k < 4; ++k) a.v[k] += b.v[k];
  return a;
}
template <class T> __device__ inline Four<T> operator-(Four<T> a, const Four<T>& b) {
  for (int k = 0; k < 4; ++k) a.v[k] -= b.v[k];
  return a;
}
template <class T> __device__ inline Four<T> operator-(Four<T> a) {
  for (int k = 0; k < 4; ++k) a.v[k] = -a.v[k];
  return a;
}
template <class T> __device__ inline Four<T> operator*(Four<T> a, const Four<T>& b) {
  for (int k = 0; k < 4; ++k) a.v[k] *= b.v[k];
  return a;
}
template <class T> __device__ inline Four<T> operator*(Four<T> a, T b) {
  for (int k = 0; k < 4; ++k) a.v[k] *= b;
  return a;
}
template <class T> __device__ inline Four<T> operator*(T b, const Four<T>& a) { return a * b; }
template <class T> __device__ inline Four<T>& operator+=(Four<T>& a, const Four<T>& b) { return a = a + b; }
// a b + c, rounded once on a device, however the compiler takes the code around it.
template <class T> __device__ inline Four<T> multiply_add(T a, const Four<T>& b, Four<T> c) {
#if defined(__CUDACC__)
  for (int k = 0; k < 4; ++k) c.v[k] = fma(a, b.v[k], c.v[k]);
#else
  for (int k = 0; k < 4; ++k) c.v[k] += a * b.v[k];
#endif
  return c;
}
template <class T> __device__ inline T total(const Four<T>& a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
template <class T> __device__ inline T silu(T x, T& slope) {
  const T s = T(1) / (T(1) + exponential(-x));
  slope = s * (T(1) + x * (T(1) - s));
  return x * s;
}

// Sum over the lanes of a warp, the same in every lane.
template <class T> __device__ inline T warp_sum(T x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(kWarp, x, step);
  return x;
}

// Sum over the threads of a block, whole warps of them, the same in every one. room: for one number a warp.
template <class T> __device__ inline T block_sum(T x, T* room) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = warp_sum(x);
  __syncthreads();  // the sum before may be read yet
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return warp_sum(lane < blockDim.x / 32 ? room[lane] : T(0));
}

// c += a b of a warp's tile by the tensor cores: a 16 x 8, b 8 x 8, c 16 x 8, their factors rounded to TF32. Lane 4 g + t has of a the rows g and
// g + 8 at t, then both at t + 4, of b column g at t and t + 4, of c the columns 2 t and 2 t + 1 of row g, then of row g + 8 (PTX ISA, mma.m16n8k8).
#if defined(__CUDACC__)
__device__ inline unsigned tf32(float x) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}
__device__ inline void multiply_tile(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(tf32(a[0])), "r"(tf32(a[1])), "r"(tf32(a[2])), "r"(tf32(a[3])), "r"(tf32(b[0])), "r"(tf32(b[1])));
}
#else
using emulator::multiply_tile;
#endif

// Calls body with the rank as a compile-time constant.
template <int RANK> struct Rank { static constexpr int value = RANK; };
template <class Body> inline void with_rank(int rank, const Body& body) {
  if (rank == 0) body(Rank<0>{});
  else if (rank == 1) body(Rank<1>{});
  else body(Rank<2>{});
}

// Throws an Error that names what failed.
void check(cudaError_t status, const char* what);
int multiprocessors();  // of the current device
int block_memory();     // bytes of shared memory that one of its blocks can have

// The first statement of a kernel that is launched behind another: all that its stream holds before it has ended. From here on the next one may take its
// place beside this one, and waits there in turn. It waits for no more than the kernel before it; that this one cannot end before it has itself waited
// makes the end of a kernel the end of all before it, so that nothing is read too early, and nothing written that is still to be read.
__device__ inline void wait_for_what_is_before() {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// What a kernel has before it in its stream: where that is a kernel, and this one waits for its end by itself, it may be brought to the device before.
enum class Behind { anything, kernel };

// kernel<<<grid, threads, bytes, stream>>>(arguments). Beyond 48 KiB a kernel is allowed all the shared memory there is: what it is allowed is the
// process's, and other threads may launch it with more or less.
template <Behind BEHIND = Behind::anything, class... P, class... A>
inline void launch(void (*kernel)(P...), dim3 grid, int threads, std::size_t bytes, cudaStream_t stream, A... arguments) {
  if (grid.x == 0) return;
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (bytes > 48 * 1024) {
    const int most = block_memory();
    if (bytes > static_cast<std::size_t>(most)) throw Error("a model as wide as this needs more shared memory than a thread block of this CUDA device has; take single precision, or the CPU");
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "shared memory");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  if (BEHIND == Behind::kernel) {
    cudaFuncAttributes compiled = {};
    check(cudaFuncGetAttributes(&compiled, function), "a kernel");
    config.attrs = &early;
    config.numAttrs = compiled.ptxVersion >= 90;  // not what the device is: of an older architecture, a kernel does not wait
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "a kernel's launch");
}

}  // namespace cuda
}  // namespace mfmd
