// What the CUDA kernels share: vectors of channels, sums over a warp, and how a kernel is launched. The twin of simd.hpp.
#pragma once

#include <cuda_runtime.h>

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

// kernel<<<grid, threads, bytes, stream>>>(arguments). Beyond 48 KiB a kernel is allowed all the shared memory there is: what it is allowed is the
// process's, and other threads may launch it with more or less.
template <class... P, class... A> inline void launch(void (*kernel)(P...), dim3 grid, int threads, std::size_t bytes, cudaStream_t stream, A... arguments) {
  if (grid.x == 0) return;
  if (bytes > 48 * 1024) check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, block_memory()), "shared memory");
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "a kernel's launch");
}

}  // namespace cuda
}  // namespace mfmd
