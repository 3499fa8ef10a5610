// Parts of kernels that put what an atom goes through between two gathers one behind the other, each for all atoms of the block: how a
// layer is entered, and in the reverse pass how a layer, or the embedding, is left.
#pragma once

#include <algorithm>

#include "blocks.hpp"

namespace mfmd {
namespace cuda {

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

// A row of what the reverse of the gates needs.
template <class T> struct Gates {
  T *normal, *slope1, *gate, *slope2, *inverse;  // [F], [2F], [RF], [RF], one
  __device__ Gates(const Block<T>& block, T* kept, int row) {
    const int F = block.F, RF = block.R * F;
    normal = kept + static_cast<std::size_t>(row) * (3 * F + 2 * RF + kSlab);
    slope1 = normal + F, gate = slope1 + 2 * F, slope2 = gate + RF, inverse = slope2 + RF;
  }
};

// y = mix_in(x / (|x|^2 + 1)), where y is not null.
template <class T> struct Mixing {
  Mixers<T> mixers;
  T* y;
  static int numbers(const Weights<T>& w) { return w.C * w.F; }

  __device__ void operator()(const Block<T>& block, int rows, const T* x) const {
    if (!y) return;
    __syncthreads();
    const int F = block.F, C = block.C, begin = block.begin(), atoms = block.count(rows);
    T* scaled = shared<T>();
    block.each_channel(rows, [&](int a, int f, std::size_t row) {
      const T* xi = x + row;
      T norm = T(1);
      for (int k = 0; k < C; ++k) norm += xi[k * kSlab] * xi[k * kSlab];
      for (int k = 0; k < C; ++k) scaled[(a * C + k) * F + f] = xi[k * kSlab] / norm;
    });
    __syncthreads();
    mix(block, mixers, scaled, atoms, [&](int a, int k, int f, const Four<T>& v) { store(y + block.at(begin + a, f) + k * kSlab, v); });
  }
};

// What products are multiplied by, by the slot of an atom; `of` null: nothing.
template <class T> struct Factors {
  const T* of;
  const int* slot;
  __device__ T operator()(const Block<T>& block, int a) const { return of[slot[block.begin() + a]]; }
};

// Adjoints of messages (am) and of what they were made of (ay) from that of the layer's result, where am is not null.
template <class T> struct ProductReverse {
  Mixers<T> mixers;
  const T *y, *m, *dx;
  T *am, *ay;
  const T* sums;  // of own messages, else null
  T* asums;
  Factors<T> factors;
  static int numbers(const Weights<T>& w) { return 2 * w.C * w.F; }

  __device__ void operator()(const Block<T>& block, int rows, const T* ax) const {
    if (!am) return;
    __syncthreads();
    const int F = block.F, atoms = block.count(rows);
    T *adx = shared<T>(), *ap = adx + block.atoms * block.C * F;
    block.each_channel_of_rank(rows, [&](auto rank, int a, int f, std::size_t row) {
      constexpr int RANK = decltype(rank)::value, C = tensor::components(RANK);
      T adjoint[C], d[C], through[C];
      read<C>(ax + row, adjoint);
      read<C>(dx + row, d);
      tensor::transpose<RANK>(d);
      tensor::anticommutator<RANK, T>(adjoint, d, through);
      if (factors.of)
        for (int k = 0; k < C; ++k) through[k] *= factors(block, a);
#pragma unroll
      for (int k = 0; k < C; ++k) adx[(a * C + k) * F + f] = adjoint[k] + through[k];
    });
    __syncthreads();
    mix(block, mixers, adx, atoms, [&](int a, int k, int f, const Four<T>& v) { store(ap + (a * block.C + k) * F + f, v); });
    __syncthreads();
    block.each_channel_of_rank(rows, [&](auto rank, int a, int f, std::size_t row) {
      constexpr int RANK = decltype(rank)::value, C = tensor::components(RANK);
      T vm[C], vy[C], p[C], back[C], out[C];
      read<C>(m + row, vm);
      read<C>(y + row, vy);
      tensor::anticommutator<RANK, T>(vm, vy, p);
      if (factors.of)
        for (int k = 0; k < C; ++k) p[k] *= factors(block, a);
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
      if (factors.of)
        for (int k = 0; k < C; ++k) back[k] *= factors(block, a);
      tensor::transpose<RANK>(vy);
      tensor::transpose<RANK>(vm);
      tensor::anticommutator<RANK, T>(back, vy, out);
#pragma unroll
      for (int k = 0; k < C; ++k) am[row + k * kSlab] = out[k];
      tensor::anticommutator<RANK, T>(back, vm, out);
#pragma unroll
      for (int k = 0; k < C; ++k) ay[row + k * kSlab] = out[k];
      if (!sums) return;
      const std::size_t parts = (static_cast<std::size_t>(block.begin() + a) * F + f / kSlab * kSlab) * (RANK + 1) + f % kSlab;
#pragma unroll
      for (int part = 0; part <= RANK; ++part) {
        T sum = T(0);
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
          const T adjoint = am[row + k * kSlab];
          sum += adjoint * y[row + k * kSlab];
          ay[row + k * kSlab] += adjoint * sums[parts + part * kSlab];
        }
        asums[parts + part * kSlab] = sum;
      }
    });
  }
};

// The adjoint of what the embedding gathered from that of its result.
template <class T> struct EmbeddingMixReverse {
  Mixers<T> mixers;
  Norm<T> norm;
  Dense<T> gate0, gate1;
  const T *raw, *mixed, *kept;
  T* araw;
  static int numbers(const Weights<T>& w) { return (w.C + w.R + 3) * w.F; }

  __device__ void operator()(const Block<T>& block, int rows, const T* ax) const {
    __syncthreads();
    const int F = block.F, C = block.C, R = block.R, begin = block.begin(), atoms = block.count(rows);
    T *amixed = shared<T>(), *agate = amixed + block.atoms * C * F, *ahidden = agate + block.atoms * R * F, *anorm = ahidden + block.atoms * 2 * F;
    const auto gates = [&](int a) { return Gates<T>(block, const_cast<T*>(kept), begin + a); };
    block.each_channel(rows, [&](int a, int f, std::size_t row) {
      const Gates<T> g = gates(a);
      for (int part = 0; part < R; ++part) {
        T sum = T(0);
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
          const T adjoint = ax[row + k * kSlab];
          sum += adjoint * mixed[row + k * kSlab];
          amixed[(a * C + k) * F + f] = adjoint * g.gate[part * F + f];
        }
        agate[(a * R + part) * F + f] = sum * g.slope2[part * F + f];
      }
    });
    __syncthreads();
    dense(block, agate, gate1.wt, static_cast<const T*>(nullptr), atoms, R * F, 2 * F,
          [&](int a, int f, const Four<T>& v) { store(ahidden + a * 2 * F + f, v * load(gates(a).slope1 + f)); });
    __syncthreads();
    dense(block, ahidden, gate0.wt, static_cast<const T*>(nullptr), atoms, 2 * F, F, [&](int a, int f, const Four<T>& v) { store(anorm + a * F + f, v); });
    __syncthreads();
    for (int a = threadIdx.x / 32; a < atoms; a += kThreads / 32)
      layer_norm_reverse(norm, gates(a).normal, *gates(a).inverse, anorm + a * F, F, anorm + a * F);
    __syncthreads();
    mix(block, mixers, amixed, atoms, [&](int a, int k, int f, const Four<T>& v) {
      const std::size_t at = block.at(begin + a, f) + k * kSlab;
      store(araw + at, v + T(2) * load(anorm + a * F + f) * load(raw + at));
    });
  }
};

template <class T> inline ProductReverse<T> product_reverse(const Weights<T>& w, const Leaving<T>& to) {
  return {Mixers<T>(w, w.layers[to.l].mix_out, true), to.y, to.m, to.dx, to.am, to.ay, to.sums, to.asums, {w.factor, to.slot}};
}
template <class T> inline EmbeddingMixReverse<T> embedding_mix_reverse(const Weights<T>& w, const Leaving<T>& to) {
  return {Mixers<T>(w, w.embedding_mix, true), w.embedding_norm, w.gate[0], w.gate[1], to.raw, to.mixed, to.kept, to.am};
}

}  // namespace cuda
}  // namespace mfmd
