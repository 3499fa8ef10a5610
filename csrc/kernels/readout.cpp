// Invariants of the last features, the heads' energies, and the start of the reverse pass.
#include <algorithm>

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <class T>
void readout(const Weights<T>& w, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, T* ax, T* features, int begin, int end,
             T* scratch) {
  const int F = w.F, RF = w.R * F, C = w.C, W = Simd<T>::width;
  T* next = scratch;
  const auto take = [&](int width) { T* p = next; next += static_cast<std::size_t>(kAtomBlock) * width; return p; };
  T *norm = take(RF), *normal = take(RF), *scaled = take(RF), *z = take(F), *feature = take(F), *az = take(F);
  int widest = F;
  for (int s = 0; s < n_seeds; ++s)
    if (!w.heads[seeds[s].head].linear) widest = std::max(widest, w.heads[seeds[s].head].hidden.out);
  T *a = take(widest), *h = take(widest), *ah = take(widest), *ascaled = take(RF);
  T inverse[kAtomBlock];
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    for (int q = 0; q < atoms; ++q) {
      const T* xi = x + static_cast<std::size_t>(i + q) * C * F;
      for (int f = 0; f < F; f += W)
        for (int part = 0; part < w.R; ++part) {
          Vec<T> sum{};
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
            const Vec<T> v = at(xi + place(C, f) + k * kSlab);
            sum += v * v;
          }
          at(norm + q * RF + part * F + f) = sum;
        }
      inverse[q] = layer_norm(w.readout_norm, norm + q * RF, RF, normal + q * RF, scaled + q * RF);
    }
    dense(scaled, w.readout, z, atoms);
    silu<T>(z, atoms * F, feature, z);  // from here on z is the slope
    if (features)
      for (int k = 0; k < atoms * F; ++k) features[static_cast<std::size_t>(i) * F + k] = feature[k];
    for (int k = 0; k < atoms * F; ++k) az[k] = 0;
    for (int s = 0; s < n_seeds; ++s) {
      const HeadWeights<T>& head = w.heads[seeds[s].head];
      if (head.linear) {
        for (int q = 0; q < atoms; ++q) {
          const T *weight = head.linear + static_cast<std::size_t>(slot[i + q]) * F, *own = feature + q * F;
          const double sum = sum_of(F, [&](int k) { return static_cast<double>(own[k]) * weight[k]; });
          seeds[s].energies[i + q] = head.scale * sum + head.e0[slot[i + q]];
          for (int k = 0; k < F; ++k) az[q * F + k] += static_cast<T>(seeds[s].weight * head.scale) * weight[k];
        }
        continue;
      }
      const int H = head.hidden.out;
      dense(feature, head.hidden, a, atoms);
      silu<T>(a, atoms * H, h, a);
      for (int q = 0; q < atoms; ++q) {
        double sum = head.out.b[0];
        for (int k = 0; k < H; ++k) {
          sum += static_cast<double>(h[q * H + k]) * head.out.w[k];
          ah[q * H + k] = static_cast<T>(seeds[s].weight * head.scale * head.out.w[k] * a[q * H + k]);
        }
        seeds[s].energies[i + q] = head.scale * sum + head.e0[slot[i + q]];
      }
      if (ax && seeds[s].weight != T(0)) {
        dense_reverse(ah, head.hidden, h, atoms);
        for (int k = 0; k < atoms * F; ++k) az[k] += h[k];
      }
    }
    if (!ax) continue;
    for (int k = 0; k < atoms * F; ++k) az[k] *= z[k];
    dense_reverse(az, w.readout, ascaled, atoms);
    for (int q = 0; q < atoms; ++q) {
      T* anorm = norm + q * RF;
      layer_norm_reverse(w.readout_norm, normal + q * RF, inverse[q], ascaled + q * RF, RF, anorm);
      const std::size_t row = static_cast<std::size_t>(i + q) * C * F;
      for (int f = 0; f < F; f += W)
        for (int part = 0; part < w.R; ++part)
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
            at(ax + row + place(C, f) + k * kSlab) = 2 * at(x + row + place(C, f) + k * kSlab) * at(anorm + part * F + f);
    }
  }
}

#define MFMD_INSTANTIATE(T) \
  template void readout<T>(const Weights<T>&, const int*, const T*, const Seed<T>*, int, T*, T*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
