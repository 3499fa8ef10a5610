// The reverse of a layer's entrance, and how the layer before it, or the embedding, is left: the twin of mixing.cpp, whose forward pass is in passes.hpp.
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T, class Leave>
__global__ void __launch_bounds__(kThreads, 2) mixing_reverse_kernel(Block<T> block, int rows, Mixers<T> mixers, Leave leave, const T* x, const T* ay, T* ax) {
  const int F = block.F, C = block.C, atoms = block.count(rows);
  T *in = shared<T>(), *out = in + block.atoms * C * F;
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    for (int k = 0; k < C; ++k) in[(a * C + k) * F + f] = ay[row + k * kSlab];
  });
  __syncthreads();
  mix(block, mixers, in, atoms, [&](int a, int k, int f, const Four<T>& v) { store(out + (a * C + k) * F + f, v); });
  __syncthreads();
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    const T* xi = x + row;
    T* axi = ax + row;
    T norm = T(1), dot = T(0), adjoint[kMaxComponents];
    for (int k = 0; k < C; ++k) {
      adjoint[k] = axi[k * kSlab] + out[(a * C + k) * F + f];
      norm += xi[k * kSlab] * xi[k * kSlab];
      dot += xi[k * kSlab] * adjoint[k];
    }
    const T inverse = T(1) / norm, back = 2 * dot * inverse * inverse;
    for (int k = 0; k < C; ++k) axi[k * kSlab] = adjoint[k] * inverse - xi[k * kSlab] * back;
  });
  leave(block, rows, ax);
}

}  // namespace

template <class T> void mixing_reverse(const Weights<T>& w, int l, const T* x, const T* ay, T* ax, const Leaving<T>& to, int rows, cudaStream_t stream) {
  const auto run = [&](const auto& leave) {
    over_atoms(mixing_reverse_kernel<T, std::decay_t<decltype(leave)>>, w, std::max(2 * w.C * w.F, leave.numbers(w)), rows, stream, Mixers<T>(w, w.layers[l].mix_in, true), leave, x, ay, ax);
  };
  if (to.l < 0) run(embedding_mix_reverse(w, to));
  else run(product_reverse(w, to));
}
template void mixing_reverse<float>(const Weights<float>&, int, const float*, const float*, float*, const Leaving<float>&, int, cudaStream_t);
template void mixing_reverse<double>(const Weights<double>&, int, const double*, const double*, double*, const Leaving<double>&, int, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
