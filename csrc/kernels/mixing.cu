// The reverse of a layer's entrance, and how the layer before it, or the embedding, is left: the twin of mixing.cpp, whose forward pass is in passes.hpp.
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T, class Leave>
__global__ void __launch_bounds__(kThreads, 2) mixing_reverse_kernel(Block<T> block, int rows, Mixers<T> mixers, Leave leave, const T* x, const T* ay, T* ax) {
  wait_for_what_is_before();
  const int F = block.F, atoms = block.count(rows);
  T *in = shared<T>(), *out = in + block.atoms * block.C * F;
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    for (int k = 0; k < block.C; ++k) in[(a * block.C + k) * F + f] = ay[row + k * kSlab];
  });
  __syncthreads();
  mix(block, mixers, in, atoms, [&](int a, int k, int f, const Four<T>& v) { store(out + (a * block.C + k) * F + f, v); });
  __syncthreads();
  block.each_channel_of_rank(rows, [&](auto rank, int a, int f, std::size_t row) {
    constexpr int C = tensor::components(decltype(rank)::value);
    T vx[C], adjoint[C], dot = T(0);
    read<C>(x + row, vx);
    read<C>(ax + row, adjoint);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      adjoint[k] += out[(a * C + k) * F + f];
      dot += vx[k] * adjoint[k];
    }
    const T inverse = T(1) / norm1<C>(vx), back = 2 * dot * inverse * inverse;
#pragma unroll
    for (int k = 0; k < C; ++k) ax[row + k * kSlab] = adjoint[k] * inverse - vx[k] * back;
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
