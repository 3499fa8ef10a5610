// The equivariant product and the update of features, and their reverse: the twin of product.cpp.
#include "blocks.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <int C, class T> __device__ inline void read(const T* x, T* v) {
#pragma unroll
  for (int k = 0; k < C; ++k) v[k] = x[k * kSlab];
}
template <int C, class T> __device__ inline T norm1(const T* v) {
  T sum = T(1);
#pragma unroll
  for (int k = 0; k < C; ++k) sum += v[k] * v[k];
  return sum;
}

template <int RANK, class T>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(Block<T> block, int rows, Mixers<T> mixers, const T* x, const T* y, const T* m, T* dx, T* next) {
  constexpr int C = tensor::components(RANK);
  const int F = block.F, begin = block.begin(), atoms = block.count(rows);
  T *scaled = shared<T>(), *mixed = scaled + block.atoms * C * F;
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const std::size_t row = block.at(begin + a, f);
    T vm[C], vy[C], p[C];
    read<C>(m + row, vm);
    read<C>(y + row, vy);
    tensor::anticommutator<RANK, T>(vm, vy, p);
    const T inverse = T(1) / norm1<C>(p);
#pragma unroll
    for (int k = 0; k < C; ++k) scaled[(a * C + k) * F + f] = p[k] * inverse;
  }
  __syncthreads();
  mix(block, mixers, scaled, atoms, [&](int a, int k, int f, const Four<T>& v) { store(mixed + (a * C + k) * F + f, v); });
  __syncthreads();
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const std::size_t row = block.at(begin + a, f);
    T vx[C], d[C], square[C];
    read<C>(x + row, vx);
#pragma unroll
    for (int k = 0; k < C; ++k) d[k] = mixed[(a * C + k) * F + f];
    tensor::anticommutator<RANK, T>(d, d, square);
    const T inverse = T(1) / norm1<C>(vx);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      dx[row + k * kSlab] = d[k];
      next[row + k * kSlab] = vx[k] * inverse + d[k] + T(0.5) * square[k];
    }
  }
}

template <int RANK, class T>
__global__ void __launch_bounds__(kThreads, 2)
    product_reverse_kernel(Block<T> block, int rows, Mixers<T> mixers, const T* y, const T* m, const T* dx, const T* ax, T* am, T* ay) {
  constexpr int C = tensor::components(RANK);
  const int F = block.F, begin = block.begin(), atoms = block.count(rows);
  T *adx = shared<T>(), *ap = adx + block.atoms * C * F;
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const std::size_t row = block.at(begin + a, f);
    T adjoint[C], d[C], through[C];
    read<C>(ax + row, adjoint);
    read<C>(dx + row, d);
    tensor::transpose<RANK>(d);
    tensor::anticommutator<RANK, T>(adjoint, d, through);
#pragma unroll
    for (int k = 0; k < C; ++k) adx[(a * C + k) * F + f] = adjoint[k] + through[k];
  }
  __syncthreads();
  mix(block, mixers, adx, atoms, [&](int a, int k, int f, const Four<T>& v) { store(ap + (a * C + k) * F + f, v); });
  __syncthreads();
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const std::size_t row = block.at(begin + a, f);
    T vm[C], vy[C], p[C], back[C], out[C];
    read<C>(m + row, vm);
    read<C>(y + row, vy);
    tensor::anticommutator<RANK, T>(vm, vy, p);
    const T inverse = T(1) / norm1<C>(p);
    T dot = T(0);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      back[k] = ap[(a * C + k) * F + f];
      dot += back[k] * p[k];
    }
    dot *= 2 * inverse * inverse;
#pragma unroll
    for (int k = 0; k < C; ++k) back[k] = back[k] * inverse - p[k] * dot;
    tensor::transpose<RANK>(vy);
    tensor::transpose<RANK>(vm);
    tensor::anticommutator<RANK, T>(back, vy, out);
#pragma unroll
    for (int k = 0; k < C; ++k) am[row + k * kSlab] = out[k];
    tensor::anticommutator<RANK, T>(back, vm, out);
#pragma unroll
    for (int k = 0; k < C; ++k) ay[row + k * kSlab] = out[k];
  }
}

}  // namespace

template <class T> void product(const Weights<T>& w, int l, const T* x, const T* y, const T* m, T* dx, T* next, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) {
    over_atoms(product_kernel<decltype(rank)::value, T>, w, 2 * w.C * w.F, rows, stream, Mixers<T>(w, w.layers[l].mix_out), x, y, m, dx, next);
  });
}
template <class T>
void product_reverse(const Weights<T>& w, int l, const T* y, const T* m, const T* dx, const T* ax, T* am, T* ay, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) {
    over_atoms(product_reverse_kernel<decltype(rank)::value, T>, w, 2 * w.C * w.F, rows, stream, Mixers<T>(w, w.layers[l].mix_out, true), y, m, dx, ax, am, ay);
  });
}

#define MFMD_INSTANTIATE(T)                                                                                              \
  template void product<T>(const Weights<T>&, int, const T*, const T*, const T*, T*, T*, int, cudaStream_t);             \
  template void product_reverse<T>(const Weights<T>&, int, const T*, const T*, const T*, const T*, T*, T*, int, cudaStream_t);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace cuda
}  // namespace mfmd
