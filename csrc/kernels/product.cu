// The equivariant product, the update of features and the entrance of the next layer: the twin of product.cpp.
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    product_kernel(Block<T> block, int rows, Mixers<T> mixers, Mixing<T> enter, Factors<T> factors, const T* x, const T* y, const T* m, T* dx, T* next) {
  wait_for_what_is_before();
  const int F = block.F, atoms = block.count(rows);
  T *scaled = shared<T>(), *mixed = scaled + block.atoms * block.C * F;
  block.each_channel_of_rank(rows, [&](auto rank, int a, int f, std::size_t row) {
    constexpr int RANK = decltype(rank)::value, C = tensor::components(RANK);
    T vm[C], vy[C], p[C];
    read<C>(m + row, vm);
    read<C>(y + row, vy);
    tensor::anticommutator<RANK, T>(vm, vy, p);
    if (factors.of)
      for (int k = 0; k < C; ++k) p[k] *= factors(block, a);
    const T inverse = T(1) / norm1<C>(p);
#pragma unroll
    for (int k = 0; k < C; ++k) scaled[(a * C + k) * F + f] = p[k] * inverse;
  });
  __syncthreads();
  mix(block, mixers, scaled, atoms, [&](int a, int k, int f, const Four<T>& v) { store(mixed + (a * block.C + k) * F + f, v); });
  __syncthreads();
  block.each_channel_of_rank(rows, [&](auto rank, int a, int f, std::size_t row) {
    constexpr int RANK = decltype(rank)::value, C = tensor::components(RANK);
    T vx[C], d[C], square[C];
    read<C>(x + row, vx);
#pragma unroll
    for (int k = 0; k < C; ++k) d[k] = mixed[(a * C + k) * F + f];
    tensor::anticommutator<RANK, T>(d, d, square);
    if (factors.of)
      for (int k = 0; k < C; ++k) square[k] *= factors(block, a);
    const T inverse = T(1) / norm1<C>(vx);
#pragma unroll
    for (int k = 0; k < C; ++k) {
      dx[row + k * kSlab] = d[k];
      next[row + k * kSlab] = vx[k] * inverse + d[k] + T(0.5) * square[k];
    }
  });
  enter(block, rows, next);
}

}  // namespace

template <class T> void product(const Weights<T>& w, int l, const int* slot, const T* x, const T* y, const T* m, T* dx, T* next, T* next_y, int rows, cudaStream_t stream) {
  const Mixing<T> enter{next_y ? Mixers<T>(w, w.layers[l + 1].mix_in) : Mixers<T>(), next_y};
  over_atoms(product_kernel<T>, w, std::max(2 * w.C * w.F, enter.numbers(w)), rows, stream, Mixers<T>(w, w.layers[l].mix_out), enter, Factors<T>{w.factor, slot}, x, y, m, dx, next);
}
template void product<float>(const Weights<float>&, int, const int*, const float*, const float*, const float*, float*, float*, float*, int, cudaStream_t);
template void product<double>(const Weights<double>&, int, const int*, const double*, const double*, const double*, double*, double*, double*, int, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
