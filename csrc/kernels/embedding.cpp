// The first tensors of an atom, from distances, directions and elements of its neighbours.
#include "pairs.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

template <int RANK, bool TABLE, class T>
void gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F;
  PairWeights<T, TABLE, false> weights(w, -1, pairs, scratch);
  for (int i = begin; i < end; ++i) {
    T* x = raw + static_cast<std::size_t>(i) * C * F;
    const T* own = w.self_embedding + static_cast<std::size_t>(slot[i]) * F;
    for (int f = 0; f < F; ++f) x[f] = own[f];
    for (int k = F; k < C * F; ++k) x[k] = 0;
    in_blocks(pairs, i, weights.kBlock, [&](int p0, int n) {
      weights.block(p0, n);
      T basis[weights.kBlock][kMaxComponents];
      const T* z[weights.kBlock];
      for (int p = 0; p < n; ++p) {
        const T* u = pairs.u + 3 * static_cast<std::size_t>(p0 + p);
        basis[p][0] = T(tensor::kSqrt3);
        for (int a = 0; a < 3; ++a) basis[p][1 + a] = T(tensor::kSqrt2) * u[a];
        tensor::symmetric(u, basis[p] + 4);
        z[p] = w.pair + (static_cast<std::size_t>(slot[i]) * w.slots + slot[pairs.j[p0 + p]]) * F;
      }
      for (int f = 0; f < F; f += W) {
        Vec<T> sum[C], v, none;
        for (int k = 0; k < C; ++k) sum[k] = at(x + k * F + f);
        for (int p = 0; p < n; ++p)
          for (int part = 0; part < R; ++part) {
            weights.read(p, part * F + f, v, none);
            v *= at(z[p] + f);
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) sum[k] += v * basis[p][k];
          }
        for (int k = 0; k < C; ++k) at(x + k * F + f) = sum[k];
      }
    });
  }
}

template <int RANK, bool TABLE, class T>
void gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, const double* slope, double* gradient,
                    int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F;
  PairWeights<T, TABLE, true> weights(w, -1, pairs, scratch);
  for (int i = begin; i < end; ++i) {
    const T* ai = araw + static_cast<std::size_t>(i) * C * F;
    in_blocks(pairs, i, weights.kBlock, [&](int p0, int n) {
      weights.block(p0, n);
      for (int p = 0; p < n; ++p) {
        const int j = pairs.j[p0 + p];
        const T* aj = araw + static_cast<std::size_t>(j) * C * F;
        const T* zij = w.pair + (static_cast<std::size_t>(slot[i]) * w.slots + slot[j]) * F;
        const T* zji = w.pair + (static_cast<std::size_t>(slot[j]) * w.slots + slot[i]) * F;
        // along[k] = sum over f of value * (zij ai + sign zji aj), steep[k] the same with the slope; the reversed pair
        // sees -u, so the antisymmetric part changes sign.
        Vec<T> along[kMaxComponents] = {}, steep[kMaxComponents] = {}, v, dv;
        for (int f = 0; f < F; f += W)
          for (int part = 0; part < R; ++part) {
            weights.read(p, part * F + f, v, dv);
            const Vec<T> there = at(zij + f), back = part == 1 ? -at(zji + f) : at(zji + f);
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
              const Vec<T> both = there * at(ai + k * F + f) + back * at(aj + k * F + f);
              along[k] += both * v;
              steep[k] += both * dv;
            }
          }
        const T* u = pairs.u + 3 * static_cast<std::size_t>(p0 + p);
        T s[5], ds[5][3];
        tensor::symmetric(u, s);
        tensor::symmetric_slope(u, ds);
        double dd = slope[p0 + p] + tensor::kSqrt3 * total<T>(steep[0]), du[3] = {0, 0, 0};
        if (R > 1)
          for (int a = 0; a < 3; ++a) {
            dd += tensor::kSqrt2 * total<T>(steep[1 + a]) * u[a];
            du[a] += tensor::kSqrt2 * total<T>(along[1 + a]);
          }
        if (R > 2)
          for (int m = 0; m < 5; ++m) {
            dd += static_cast<double>(total<T>(steep[4 + m])) * s[m];
            const double share = total<T>(along[4 + m]);
            for (int a = 0; a < 3; ++a) du[a] += share * ds[m][a];
          }
        const double radial_part = du[0] * u[0] + du[1] * u[1] + du[2] * u[2], inverse = 1.0 / pairs.d[p0 + p];
        double* g = gradient + 3 * static_cast<std::size_t>(p0 + p);
        for (int a = 0; a < 3; ++a) g[a] = dd * u[a] + (du[a] - radial_part * u[a]) * inverse;
      }
    });
  }
}

}  // namespace

template <class T>
void embedding_gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) gather<decltype(rank)::value, true, T>(w, pairs, slot, raw, begin, end, scratch);
    else gather<decltype(rank)::value, false, T>(w, pairs, slot, raw, begin, end, scratch);
  });
}
template <class T>
void embedding_gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, const double* slope,
                              double* gradient, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) gather_reverse<decltype(rank)::value, true, T>(w, pairs, slot, araw, slope, gradient, begin, end, scratch);
    else gather_reverse<decltype(rank)::value, false, T>(w, pairs, slot, araw, slope, gradient, begin, end, scratch);
  });
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
  silu<T>(g.a1, atoms * 2 * F, g.h1, nullptr);
  dense(g.h1, w.gate[1], g.a2, atoms);
  silu<T>(g.a2, atoms * RF, g.gate, g.a2);  // from here on a2 is the slope
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
          agate[a * RF + part * F + f] = sum * g.a2[a * RF + part * F + f];
        }
    dense_reverse(agate, w.gate[1], ah1, atoms);
    silu<T>(g.a1, atoms * 2 * F, g.h1, g.a1);
    for (int k = 0; k < atoms * 2 * F; ++k) ah1[k] *= g.a1[k];
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
