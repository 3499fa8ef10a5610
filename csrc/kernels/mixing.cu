// Channel mixing at the entrance of a message layer: the twin of mixing.cpp.
#include "blocks.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T> __global__ void __launch_bounds__(kThreads, 2) mixing_kernel(Block<T> block, int rows, Mixers<T> mixers, const T* x, T* y) {
  const int F = block.F, C = block.C;
  const int begin = block.begin(), atoms = block.count(rows);
  T* scaled = shared<T>();
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const T* xi = x + block.at(begin + a, f);
    T norm = T(1);
    for (int k = 0; k < C; ++k) norm += xi[k * kSlab] * xi[k * kSlab];
    for (int k = 0; k < C; ++k) scaled[(a * C + k) * F + f] = xi[k * kSlab] / norm;
  }
  __syncthreads();
  mix(block, mixers, scaled, atoms, [&](int a, int k, int f, const Four<T>& v) { store(y + block.at(begin + a, f) + k * kSlab, v); });
}

template <class T> __global__ void __launch_bounds__(kThreads, 2) mixing_reverse_kernel(Block<T> block, int rows, Mixers<T> mixers, const T* x, const T* ay, T* ax) {
  const int F = block.F, C = block.C;
  const int begin = block.begin(), atoms = block.count(rows);
  T *in = shared<T>(), *out = in + block.atoms * C * F;
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    for (int k = 0; k < C; ++k) in[(a * C + k) * F + f] = ay[block.at(begin + a, f) + k * kSlab];
  }
  __syncthreads();
  mix(block, mixers, in, atoms, [&](int a, int k, int f, const Four<T>& v) { store(out + (a * C + k) * F + f, v); });
  __syncthreads();
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) {
    const int a = item / F, f = item % F;
    const T* xi = x + block.at(begin + a, f);
    T* axi = ax + block.at(begin + a, f);
    T norm = T(1), dot = T(0), adjoint[kMaxComponents];
    for (int k = 0; k < C; ++k) {
      adjoint[k] = axi[k * kSlab] + out[(a * C + k) * F + f];
      norm += xi[k * kSlab] * xi[k * kSlab];
      dot += xi[k * kSlab] * adjoint[k];
    }
    const T inverse = T(1) / norm, back = 2 * dot * inverse * inverse;
    for (int k = 0; k < C; ++k) axi[k * kSlab] = adjoint[k] * inverse - xi[k * kSlab] * back;
  }
}

}  // namespace

template <class T> void mixing(const Weights<T>& w, int l, const T* x, T* y, int rows, cudaStream_t stream) {
  over_atoms(mixing_kernel<T>, w, w.C * w.F, rows, stream, Mixers<T>(w, w.layers[l].mix_in), x, y);
}
template <class T> void mixing_reverse(const Weights<T>& w, int l, const T* x, const T* ay, T* ax, int rows, cudaStream_t stream) {
  over_atoms(mixing_reverse_kernel<T>, w, 2 * w.C * w.F, rows, stream, Mixers<T>(w, w.layers[l].mix_in, true), x, ay, ax);
}

#define MFMD_INSTANTIATE(T)                                                            \
  template void mixing<T>(const Weights<T>&, int, const T*, T*, int, cudaStream_t);   \
  template void mixing_reverse<T>(const Weights<T>&, int, const T*, const T*, T*, int, cudaStream_t);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace cuda
}  // namespace mfmd
