// The first tensors of an atom, from distances, directions and elements of its neighbours.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <class T>
void embedding_gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width;
  const int F = w.F, R = w.R, C = w.C, block = pairs.knot ? kTableBlock : kPairBlock;
  T* value = scratch;
  T* rest = value + kPairBlock * R * F;
  for (int i = begin; i < end; ++i) {
    T* x = raw + static_cast<std::size_t>(i) * C * F;
    const T* own = w.self_embedding + static_cast<std::size_t>(slot[i]) * F;
    for (int f = 0; f < F; ++f) x[f] = own[f];
    for (int k = F; k < C * F; ++k) x[k] = 0;
    for (int p0 = pairs.first[i]; p0 < pairs.first[i + 1]; p0 += block) {
      const int left = pairs.first[i + 1] - p0, n = left < block ? left : block;
      radial<T>(w, -1, pairs, p0, n, value, nullptr, rest);
      for (int p = 0; p < n; ++p) {
        const T* u = pairs.u + 3 * static_cast<std::size_t>(p0 + p);
        T basis[kMaxComponents];
        basis[0] = T(tensor::kSqrt3);
        for (int a = 0; a < 3; ++a) basis[1 + a] = T(tensor::kSqrt2) * u[a];
        tensor::symmetric(u, basis + 4);
        const T* zij = w.pair + (static_cast<std::size_t>(slot[i]) * w.slots + slot[pairs.j[p0 + p]]) * F;
        const T* v = value + static_cast<std::size_t>(p) * R * F;
        for (int part = 0; part < R; ++part)
          for (int f = 0; f < F; f += W) {
            const Vec<T> zv = at(zij + f) * at(v + part * F + f);
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) at(x + k * F + f) += zv * basis[k];
          }
      }
    }
  }
}

namespace {

// Gates of a block of atoms, with what the reverse needs. Sizes in rows of kAtomBlock.
template <class T> struct Gates {
  T *norm, *normal, *scaled, *a1, *h1, *a2, *gate, *mixed;
  T inverse[kAtomBlock];
  T* rest;
};
template <class T> Gates<T> gates(const Weights<T>& w, const T* raw, int atoms, T* scratch) {
  const int F = w.F, RF = w.R * F, C = w.C;
  Gates<T> g;
  T* next = scratch;
  const auto take = [&](int width) { T* p = next; next += static_cast<std::size_t>(kAtomBlock) * width; return p; };
  g.norm = take(F), g.normal = take(F), g.scaled = take(F);
  g.a1 = take(2 * F), g.h1 = take(2 * F), g.a2 = take(RF), g.gate = take(RF), g.mixed = take(C * F);
  g.rest = next;
  for (int a = 0; a < atoms; ++a) {
    const T* x = raw + static_cast<std::size_t>(a) * C * F;
    T* n = g.norm + a * F;
    for (int f = 0; f < F; ++f) n[f] = 0;
    for (int k = 0; k < C; ++k)
      for (int f = 0; f < F; ++f) n[f] += x[k * F + f] * x[k * F + f];
    g.inverse[a] = layer_norm(w.embedding_norm, n, F, g.normal + a * F, g.scaled + a * F);
  }
  dense(g.scaled, w.gate[0], g.a1, atoms);
  for (int k = 0; k < atoms * 2 * F; ++k) g.h1[k] = silu(g.a1[k]);
  dense(g.h1, w.gate[1], g.a2, atoms);
  for (int k = 0; k < atoms * RF; ++k) g.gate[k] = silu(g.a2[k]);
  mix<T>(w, w.embedding_mix, raw, g.mixed, atoms);
  return g;
}

}  // namespace

template <class T> void embedding_mix(const Weights<T>& w, const T* raw, T* x, int begin, int end, T* scratch) {
  const int F = w.F, C = w.C;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    const Gates<T> g = gates(w, raw + static_cast<std::size_t>(i) * C * F, atoms, scratch);
    for (int a = 0; a < atoms; ++a)
      for (int part = 0; part < w.R; ++part)
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
          for (int f = 0; f < F; ++f)
            x[(static_cast<std::size_t>(i + a) * C + k) * F + f] =
                g.mixed[(a * C + k) * F + f] * g.gate[(a * w.R + part) * F + f];
  }
}

template <class T>
void embedding_mix_reverse(const Weights<T>& w, const T* raw, const T* ax, T* araw, int begin, int end, T* scratch) {
  const int F = w.F, RF = w.R * F, C = w.C;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    const T* x = raw + static_cast<std::size_t>(i) * C * F;
    const Gates<T> g = gates(w, x, atoms, scratch);
    T* agate = g.rest;
    T* ah1 = agate + kAtomBlock * RF;
    T* ascaled = ah1 + kAtomBlock * 2 * F;
    for (int a = 0; a < atoms; ++a)
      for (int part = 0; part < w.R; ++part)
        for (int f = 0; f < F; ++f) {
          const T gate = g.gate[(a * w.R + part) * F + f];
          T sum = 0;
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
            T& mixed = g.mixed[(a * C + k) * F + f];
            const T adjoint = ax[(static_cast<std::size_t>(i + a) * C + k) * F + f];
            sum += adjoint * mixed;
            mixed = adjoint * gate;  // from here on the adjoint of mixed
          }
          T value, slope;
          silu_slope(g.a2[a * RF + part * F + f], value, slope);
          agate[a * RF + part * F + f] = sum * slope;
        }
    dense_reverse(agate, w.gate[1], ah1, atoms);
    for (int k = 0; k < atoms * 2 * F; ++k) {
      T value, slope;
      silu_slope(g.a1[k], value, slope);
      ah1[k] *= slope;
    }
    dense_reverse(ah1, w.gate[0], ascaled, atoms);
    mix<T, true>(w, w.embedding_mix, g.mixed, araw + static_cast<std::size_t>(i) * C * F, atoms);
    for (int a = 0; a < atoms; ++a) {
      T* anorm = g.norm + a * F;
      layer_norm_reverse(w.embedding_norm, g.normal + a * F, g.inverse[a], ascaled + a * F, F, anorm);
      for (int k = 0; k < C; ++k)
        for (int f = 0; f < F; ++f)
          araw[(static_cast<std::size_t>(i + a) * C + k) * F + f] += 2 * x[(a * C + k) * F + f] * anorm[f];
    }
  }
}

template <class T>
void embedding_gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, const double* slope,
                              double* gradient, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width;
  const int F = w.F, R = w.R, C = w.C, block = pairs.knot ? kTableBlock : kPairBlock;
  T* value = scratch;
  T* dvalue = value + kPairBlock * R * F;
  T* rest = dvalue + kPairBlock * R * F;
  for (int i = begin; i < end; ++i) {
    const T* ai = araw + static_cast<std::size_t>(i) * C * F;
    for (int p0 = pairs.first[i]; p0 < pairs.first[i + 1]; p0 += block) {
      const int left = pairs.first[i + 1] - p0, n = left < block ? left : block;
      radial<T>(w, -1, pairs, p0, n, value, dvalue, rest);
      for (int p = 0; p < n; ++p) {
        const int j = pairs.j[p0 + p];
        const T* aj = araw + static_cast<std::size_t>(j) * C * F;
        const T* zij = w.pair + (static_cast<std::size_t>(slot[i]) * w.slots + slot[j]) * F;
        const T* zji = w.pair + (static_cast<std::size_t>(slot[j]) * w.slots + slot[i]) * F;
        // along[k] = sum over f of value * (zij ai + sign zji aj), steep[k] the same with the slope; the reversed pair
        // sees -u, so the antisymmetric part changes sign.
        T along[kMaxComponents] = {}, steep[kMaxComponents] = {};
        for (int part = 0; part < R; ++part) {
          const T* v = value + (static_cast<std::size_t>(p) * R + part) * F;
          const T* dv = dvalue + (static_cast<std::size_t>(p) * R + part) * F;
          const T sign = part == 1 ? T(-1) : T(1);
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
            Vec<T> s{}, ds{};
            for (int f = 0; f < F; f += W) {
              const Vec<T> both = at(zij + f) * at(ai + k * F + f) + sign * at(zji + f) * at(aj + k * F + f);
              s += both * at(v + f);
              ds += both * at(dv + f);
            }
            along[k] = total<T>(s);
            steep[k] = total<T>(ds);
          }
        }
        const T* u = pairs.u + 3 * static_cast<std::size_t>(p0 + p);
        T s[5], ds[5][3];
        tensor::symmetric(u, s);
        tensor::symmetric_slope(u, ds);
        double dd = slope[p0 + p] + tensor::kSqrt3 * steep[0], du[3] = {0, 0, 0};
        if (R > 1)
          for (int a = 0; a < 3; ++a) {
            dd += tensor::kSqrt2 * steep[1 + a] * u[a];
            du[a] += tensor::kSqrt2 * along[1 + a];
          }
        if (R > 2)
          for (int m = 0; m < 5; ++m) {
            dd += static_cast<double>(steep[4 + m]) * s[m];
            for (int a = 0; a < 3; ++a) du[a] += static_cast<double>(along[4 + m]) * ds[m][a];
          }
        const double radial_part = du[0] * u[0] + du[1] * u[1] + du[2] * u[2], inverse = 1.0 / pairs.d[p0 + p];
        double* g = gradient + 3 * static_cast<std::size_t>(p0 + p);
        for (int a = 0; a < 3; ++a) g[a] = dd * u[a] + (du[a] - radial_part * u[a]) * inverse;
      }
    }
  }
}

#define MFMD_INSTANTIATE(T)                                                                                            \
  template void embedding_gather<T>(const Weights<T>&, const Pairs<T>&, const int*, T*, int, int, T*);                 \
  template void embedding_mix<T>(const Weights<T>&, const T*, T*, int, int, T*);                                       \
  template void embedding_mix_reverse<T>(const Weights<T>&, const T*, const T*, T*, int, int, T*);                     \
  template void embedding_gather_reverse<T>(const Weights<T>&, const Pairs<T>&, const int*, const T*, const double*,   \
                                            double*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
