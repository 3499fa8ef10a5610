// Invariants of the last features, the heads' energies, and the start of the reverse pass.
#include <algorithm>
#include <cmath>

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

template <class T> std::size_t slopes_of(const Perceptron<T>& p) {
  std::size_t sum = 0;
  for (int k = 0; k < p.layers; ++k) sum += static_cast<std::size_t>(p.hidden[k].out);
  return sum * kAtomBlock;
}
template <class T> int widest_of(const Perceptron<T>& p) {
  int widest = 0;
  for (int k = 0; k < p.layers; ++k) widest = std::max(widest, p.hidden[k].out);
  return widest;
}

template <class T> double product_of(const T* a, const T* b, int n) {
  return sums_of<1>(n, [&](int k, Vec<double>* sum) __attribute__((always_inline)) { *sum += wide(piece(a + k)) * wide(piece(b + k)); })[0];
}

// out: [atoms]; slope: of the hidden layers, one behind the other, [atoms][width]; a and b have room for the widest.
template <class T> void forward(const Perceptron<T>& p, const T* x, int atoms, double* out, T* slope, T* a, T* b) {
  const T* in = x;
  for (int k = 0; k < p.layers; ++k) {
    const int size = atoms * p.hidden[k].out;
    dense_in_parts(in, p.hidden[k], a, atoms);
    silu<T>(a, size, a, slope);
    in = a, slope += size;
    std::swap(a, b);
  }
  const int H = p.out.in;
  for (int q = 0; q < atoms; ++q) out[q] = p.out.b[0] + product_of(in + q * H, p.out.w, H);
}

// ax += weight[atom] dout/dx.
template <class T> void reverse(const Perceptron<T>& p, const double* weight, int atoms, const T* slope, T* a, T* b, int F, T* ax) {
  for (int k = 0; k < p.layers; ++k) slope += atoms * p.hidden[k].out;
  for (int k = p.layers; k--;) {
    const int H = p.hidden[k].out;
    slope -= atoms * H;
    if (k == p.layers - 1)
      for (int q = 0; q < atoms; ++q)
        for (int h = 0; h < H; ++h) a[q * H + h] = static_cast<T>(weight[q]) * p.out.w[h] * slope[q * H + h];
    else
      for (int h = 0; h < atoms * H; ++h) a[h] *= slope[h];
    dense_reverse(a, p.hidden[k], b, atoms);
    std::swap(a, b);
  }
  for (int k = 0; k < atoms * F; ++k) ax[k] += a[k];
}

}  // namespace

template <class T>
void readout(const Weights<T>& w, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, T* ax, T* features, int begin, int end,
             T* scratch) {
  const int F = w.F, RF = w.R * F, C = w.C, W = Simd<T>::width;
  T* next = scratch;
  const auto take = [&](int width) { T* p = next; next += static_cast<std::size_t>(kAtomBlock) * width; return p; };
  T *norm = take(RF), *normal = take(RF), *scaled = take(RF), *z = take(F), *feature = take(F), *az = take(F);
  T *ascaled = take(RF), *of_heads = next;
  T inverse[kAtomBlock];
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    for (int q = 0; q < atoms; ++q) {
      const T* xi = x + static_cast<std::size_t>(i + q) * C * F;
      with_rank(w.rank, [&](auto rank) {
        for (int f = 0; f < F; f += W)
          each<decltype(rank)::value + 1>([&](auto part) __attribute__((always_inline)) {
            const T* own = xi + place(C, f) + tensor::first(part) * kSlab;
            Vec<T> sum{};
            each<tensor::size(part)>([&](auto m) __attribute__((always_inline)) { sum += at(own + m * kSlab) * at(own + m * kSlab); });
            at(norm + q * RF + part * F + f) = sum;
          });
      });
      inverse[q] = layer_norm(w.readout_norm, norm + q * RF, RF, normal + q * RF, scaled + q * RF);
    }
    dense(scaled, w.readout, z, atoms);
    if (w.readout_silu) {
      silu<T>(z, atoms * F, feature, z);  // from here on z is the slope
    } else {
      for (int k = 0; k < atoms * F; ++k) feature[k] = z[k], z[k] = T(1);
    }
    if (features)
      for (int k = 0; k < atoms * F; ++k) features[static_cast<std::size_t>(i) * F + k] = feature[k];
    for (int k = 0; k < atoms * F; ++k) az[k] = 0;
    for (int s = 0; s < n_seeds; ++s) {
      const HeadWeights<T>& head = w.heads[seeds[s].head];
      if (head.linear) {
        for (int q = 0; q < atoms; ++q) {
          const T *weight = head.linear + static_cast<std::size_t>(slot[i + q]) * F, *own = feature + q * F;
          seeds[s].energies[i + q] = head.scale * product_of(own, weight, F) + head.e0[slot[i + q]];
          for (int k = 0; k < F; ++k) az[q * F + k] += static_cast<T>(seeds[s].weight * head.scale) * weight[k];
        }
        continue;
      }
      next = of_heads;
      const int widest = std::max({F, widest_of(head.value), widest_of(head.gate)});
      T *a = take(widest), *b = take(widest), *slope = next, *gate_slope = slope + slopes_of(head.value);
      double value[kAtomBlock], gate[kAtomBlock], to_value[kAtomBlock], to_gate[kAtomBlock];
      forward(head.value, feature, atoms, value, slope, a, b);
      if (head.gate.layers) forward(head.gate, feature, atoms, gate, gate_slope, a, b);
      for (int q = 0; q < atoms; ++q) {
        const double open = head.gate.layers ? 1.0 / (1.0 + std::exp(-gate[q])) : 1.0, weight = static_cast<double>(seeds[s].weight) * head.scale;
        seeds[s].energies[i + q] = head.scale * (value[q] * open) + head.e0[slot[i + q]];
        to_value[q] = weight * open, to_gate[q] = weight * value[q] * open * (1.0 - open);
      }
      if (!ax || seeds[s].weight == T(0)) continue;
      reverse(head.value, to_value, atoms, slope, a, b, F, az);
      if (head.gate.layers) reverse(head.gate, to_gate, atoms, gate_slope, a, b, F, az);
    }
    if (!ax) continue;
    for (int k = 0; k < atoms * F; ++k) az[k] *= z[k];
    dense_reverse(az, w.readout, ascaled, atoms);
    for (int q = 0; q < atoms; ++q) {
      T* anorm = norm + q * RF;
      layer_norm_reverse(w.readout_norm, normal + q * RF, inverse[q], ascaled + q * RF, RF, anorm);
      const std::size_t row = static_cast<std::size_t>(i + q) * C * F;
      with_rank(w.rank, [&](auto rank) {
        for (int f = 0; f < F; f += W)
          each<tensor::components(decltype(rank)::value)>([&](auto k) __attribute__((always_inline)) {
            const std::size_t own = row + place(C, f) + k * kSlab;
            at(ax + own) = 2 * at(x + own) * at(anorm + tensor::part(k) * F + f);
          });
      });
    }
  }
}

#define MFMD_INSTANTIATE(T) \
  template void readout<T>(const Weights<T>&, const int*, const T*, const Seed<T>*, int, T*, T*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
