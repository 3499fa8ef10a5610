// Radial functions of distance and their slopes, exactly: a basis, a linear map for the embedding, three SiLU layers for a message layer; slopes by forward differentiation, since there is one
// distance in and 3F functions out. The tables that usually stand in for them are read by PairWeights.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

// y = silu(x w + b) and its slope along dx, for n rows.
template <class T> void silu_layer(const Dense<T>& d, const T* x, const T* dx, int n, T* y, T* dy) {
  dense(x, d, y, n);
  if (dx) {
    Dense<T> linear = d;
    linear.b = nullptr;
    dense(dx, linear, dy, n);
  }
  const int W = Simd<T>::width;
  for (int k = 0; k < n * d.out; k += W) {
    alignas(64) T slope[16];
    silu(y + k, W, y + k, dx ? slope : nullptr);
    if (dx) at(dy + k) *= at(slope);
  }
}

}  // namespace

template <class T> void radial(const Weights<T>& w, int l, const T* d, int n, T* value, T* slope, T* scratch) {
  const int F = w.F, K = w.K, RF = w.R * F, Ks = (K + 15) / 16 * 16;
  T* phi = scratch;
  T* dphi = phi + kPairBlock * Ks;
  T* h1 = dphi + kPairBlock * Ks;
  T* dh1 = h1 + kPairBlock * F;
  T* h2 = dh1 + kPairBlock * F;
  T* dh2 = h2 + kPairBlock * 2 * F;

  T cut[kPairBlock], dcut[kPairBlock];
  Jet basis[kMaxRadial];
  for (int p = 0; p < n; ++p) {
    const Jet r{static_cast<double>(d[p]), 1.0}, c = envelope(r, w.cutoff);
    cut[p] = static_cast<T>(c.v);
    dcut[p] = static_cast<T>(c.d);
    evaluate(w.basis, r, basis);
    for (int k = 0; k < K; ++k) phi[p * K + k] = static_cast<T>(basis[k].v), dphi[p * K + k] = static_cast<T>(basis[k].d);
  }

  const T* dx = slope ? dphi : nullptr;
  if (l < 0) {
    Dense<T> linear = w.embedding_radial;
    dense(phi, linear, value, n);
    if (slope) {
      linear.b = nullptr;
      dense(dphi, linear, slope, n);
    }
  } else {
    const LayerWeights<T>& layer = w.layers[l];
    silu_layer(layer.radial[0], phi, dx, n, h1, dh1);
    silu_layer(layer.radial[1], h1, slope ? dh1 : nullptr, n, h2, dh2);
    silu_layer(layer.radial[2], h2, slope ? dh2 : nullptr, n, value, slope);
  }
  for (int p = 0; p < n; ++p)
    for (int f = 0; f < RF; ++f) {
      const T v = value[p * RF + f];
      value[p * RF + f] = v * cut[p];
      if (slope) slope[p * RF + f] = slope[p * RF + f] * cut[p] + v * dcut[p];
    }
}

template void radial<float>(const Weights<float>&, int, const float*, int, float*, float*, float*);
template void radial<double>(const Weights<double>&, int, const double*, int, double*, double*, double*);

}  // namespace MFMD_ISA
}  // namespace mfmd
