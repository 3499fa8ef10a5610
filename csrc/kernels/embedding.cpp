// The first tensors of an atom, from distances, directions and elements of its neighbours.
#include "pairs.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

template <int RANK, bool TABLE, class T>
void gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  over_pairs<T, TABLE, false, R>(w, -1, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* own = w.self_embedding + static_cast<std::size_t>(slot[i]) * w.F + s * kSlab;
    const T *first = w.first + static_cast<std::size_t>(slot[i]) * w.F + s * kSlab, *second = w.second + s * kSlab;
    T* x = raw + (static_cast<std::size_t>(i) * w.F + s * kSlab) * C;
    for (int lane = 0; lane < kSlab; lane += W) {
      const Vec<T> zi = at(first + lane);
      Vec<T> sum[C], v[R];
      for (int k = 0; k < C; ++k)
        if (p0 > pairs.first[i]) sum[k] = at(x + k * kSlab + lane);
        else if (k == 0) sum[k] = at(own + lane);
        else sum[k] = Vec<T>{};
      for (int p = p0; p < p1; ++p) {
        const Vec<T> zij = zi + at(second + static_cast<std::size_t>(slot[pairs.j[p]]) * w.F + lane);
        const T* basis = pairs.basis + static_cast<std::size_t>(p) * kMaxComponents;
        weights.read(p, lane, v, nullptr);
        each<R>([&](auto part) __attribute__((always_inline)) { v[part] *= zij; });
        each<C>([&](auto k) __attribute__((always_inline)) { sum[k] += v[tensor::part(k)] * basis[k]; });
      }
      each<C>([&](auto k) __attribute__((always_inline)) { at(x + k * kSlab + lane) = sum[k]; });
    }
  });
}

// Of each pair of atoms once: dE/dd through the radial functions, and dE/du.
template <int RANK, bool TABLE, class T>
void gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, double* slope, double* turn, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const std::size_t row = static_cast<std::size_t>(C) * w.F;
  over_pairs<T, TABLE, true, R>(w, -1, pairs, pairs.half, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* ai = araw + i * row + s * C * kSlab;
    for (int p = p0; p < p1; ++p) {
      const int j = pairs.j[p];
      const T* aj = araw + j * row + s * C * kSlab;
      const std::size_t zi = static_cast<std::size_t>(slot[i]) * w.F + s * kSlab, zj = static_cast<std::size_t>(slot[j]) * w.F + s * kSlab;
      const T* basis = pairs.basis + static_cast<std::size_t>(p) * kMaxComponents;
      Vec<T> sums[4] = {}, v[R], dv[R];
      for (int lane = 0; lane < kSlab; lane += W) {
        weights.read(p, lane, v, dv);
        // The reversed pair sees -u, so the antisymmetric part changes sign.
        const Vec<T> there = at(w.first + zi + lane) + at(w.second + zj + lane), back = at(w.first + zj + lane) + at(w.second + zi + lane);
        const auto both = [&](int k) { return there * at(ai + k * kSlab + lane) + (k > 0 && k < 4 ? -back : back) * at(aj + k * kSlab + lane); };
        sums[0] += dv[0] * both(0) * basis[0];
        if constexpr (R > 1) {
          Vec<T> along{}, b[3];
          v[1] *= T(tensor::kSqrt2);
          each<3>([&](auto a) __attribute__((always_inline)) {
            b[a] = both(1 + a);
            along += b[a] * basis[1 + a];
            sums[1 + a] += v[1] * b[a];
          });
          sums[0] += dv[1] * along;
        }
        if constexpr (R > 2) {
          Vec<T> b[5], g[3];
          each<5>([&](auto m) __attribute__((always_inline)) { b[m] = both(4 + m); });
          sums[0] += dv[2] * tensor::symmetric_turn<T>(basis + 1, b, g);
          each<3>([&](auto a) __attribute__((always_inline)) { sums[1 + a] += v[2] * g[a]; });
        }
      }
      alignas(64) T of[kSlab];
      totals<T, 4>(sums, of);
      slope[p] += of[summed<T, 4>(0)] * weights.rate(p);
      for (int a = 0; a < 3 && R > 1; ++a) turn[3 * static_cast<std::size_t>(p) + a] += of[summed<T, 4>(1 + a)];
    }
  });
}

}  // namespace

template <class T>
void embedding_gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.interval) gather<decltype(rank)::value, true, T>(w, pairs, slot, raw, begin, end, scratch);
    else gather<decltype(rank)::value, false, T>(w, pairs, slot, raw, begin, end, scratch);
  });
}
template <class T>
void embedding_gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, double* slope, double* turn, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.interval) gather_reverse<decltype(rank)::value, true, T>(w, pairs, slot, araw, slope, turn, begin, end, scratch);
    else gather_reverse<decltype(rank)::value, false, T>(w, pairs, slot, araw, slope, turn, begin, end, scratch);
  });
}

namespace {

// A row of what the reverse of the gates needs.
template <class T> struct Gates {
  T *normal, *slope1, *gate, *slope2, *inverse;  // [F], [2F], [RF], [RF], one
};
template <class T> Gates<T> gates_of(const Weights<T>& w, T* kept, int atom) {
  T* row = kept + static_cast<std::size_t>(atom) * kept_gates(w);
  const int RF = w.R * w.F;
  return {row, row + w.F, row + 3 * w.F, row + 3 * w.F + RF, row + 3 * w.F + 2 * RF};
}

template <int RANK, class T> void forward(const Weights<T>& w, const T* raw, T* x, T* mixed, T* kept, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F, RF = R * F;
  T* norm = scratch;  // [F], then in rows of a block of atoms
  T* scaled = norm + F;
  T* a1 = scaled + kAtomBlock * F;
  T* a2 = a1 + kAtomBlock * 2 * F;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    for (int a = 0; a < atoms; ++a) {
      const T* xi = raw + static_cast<std::size_t>(i + a) * C * F;
      for (int f = 0; f < F; f += W) {
        const T* at0 = xi + place(C, f);
        Vec<T> sum{};
        each<C>([&](auto k) __attribute__((always_inline)) { sum += at(at0 + k * kSlab) * at(at0 + k * kSlab); });
        at(norm + f) = sum;
      }
      const Gates<T> g = gates_of(w, kept, i + a);
      *g.inverse = layer_norm(w.embedding_norm, norm, F, g.normal, scaled + a * F);
    }
    dense(scaled, w.gate[0], a1, atoms);
    for (int a = 0; a < atoms; ++a) silu<T>(a1 + a * 2 * F, 2 * F, a1 + a * 2 * F, gates_of(w, kept, i + a).slope1);
    dense(a1, w.gate[1], a2, atoms);
    mix<T>(w, w.embedding_mix, raw + static_cast<std::size_t>(i) * C * F, mixed + static_cast<std::size_t>(i) * C * F, atoms);
    for (int a = 0; a < atoms; ++a) {
      const Gates<T> g = gates_of(w, kept, i + a);
      silu<T>(a2 + a * RF, RF, g.gate, g.slope2);
      const std::size_t row = static_cast<std::size_t>(i + a) * C * F;
      for (int f = 0; f < F; f += W) {
        const std::size_t own = row + place(C, f);
        each<C>([&](auto k) __attribute__((always_inline)) { at(x + own + k * kSlab) = at(mixed + own + k * kSlab) * at(g.gate + tensor::part(k) * F + f); });
      }
    }
  }
}

template <int RANK, class T> void reverse(const Weights<T>& w, const T* raw, const T* mixed, T* kept, const T* ax, T* araw, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F, RF = R * F;
  T* amixed = scratch;
  T* agate = amixed + kAtomBlock * C * F;
  T* ah1 = agate + kAtomBlock * RF;
  T* ascaled = ah1 + kAtomBlock * 2 * F;
  T* anorm = ascaled + kAtomBlock * F;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    for (int a = 0; a < atoms; ++a) {
      const Gates<T> g = gates_of(w, kept, i + a);
      const std::size_t row = static_cast<std::size_t>(i + a) * C * F;
      for (int f = 0; f < F; f += W) {
        const std::size_t own = place(C, f);
        each<R>([&](auto part) __attribute__((always_inline)) {
          const Vec<T> gate = at(g.gate + part * F + f);
          Vec<T> sum{};
          each<tensor::size(part)>([&](auto m) __attribute__((always_inline)) {
            const int k = tensor::first(part) + m;
            const Vec<T> adjoint = at(ax + row + own + k * kSlab);
            sum += adjoint * at(mixed + row + own + k * kSlab);
            at(amixed + a * C * F + own + k * kSlab) = adjoint * gate;
          });
          at(agate + a * RF + part * F + f) = sum * at(g.slope2 + part * F + f);
        });
      }
    }
    dense_reverse(agate, w.gate[1], ah1, atoms);
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < 2 * F; f += W) at(ah1 + a * 2 * F + f) *= at(gates_of(w, kept, i + a).slope1 + f);
    dense_reverse(ah1, w.gate[0], ascaled, atoms);
    mix<T, true>(w, w.embedding_mix, amixed, araw + static_cast<std::size_t>(i) * C * F, atoms);
    for (int a = 0; a < atoms; ++a) {
      const Gates<T> g = gates_of(w, kept, i + a);
      layer_norm_reverse(w.embedding_norm, g.normal, *g.inverse, ascaled + a * F, F, anorm);
      const std::size_t row = static_cast<std::size_t>(i + a) * C * F;
      for (int f = 0; f < F; f += W) {
        const Vec<T> twice = 2 * at(anorm + f);
        const std::size_t own = row + place(C, f);
        each<C>([&](auto k) __attribute__((always_inline)) { at(araw + own + k * kSlab) += twice * at(raw + own + k * kSlab); });
      }
    }
  }
}

}  // namespace

template <class T> void embedding_mix(const Weights<T>& w, const T* raw, T* x, T* mixed, T* kept, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) { forward<decltype(rank)::value>(w, raw, x, mixed, kept, begin, end, scratch); });
}
template <class T>
void embedding_mix_reverse(const Weights<T>& w, const T* raw, const T* mixed, T* kept, const T* ax, T* araw, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) { reverse<decltype(rank)::value>(w, raw, mixed, kept, ax, araw, begin, end, scratch); });
}

#define MFMD_INSTANTIATE(T)                                                                                            \
  template void embedding_gather<T>(const Weights<T>&, const Pairs<T>&, const int*, T*, int, int, T*);                 \
  template void embedding_mix<T>(const Weights<T>&, const T*, T*, T*, T*, int, int, T*);                               \
  template void embedding_mix_reverse<T>(const Weights<T>&, const T*, const T*, T*, const T*, T*, int, int, T*);       \
  template void embedding_gather_reverse<T>(const Weights<T>&, const Pairs<T>&, const int*, const T*, double*, double*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
