// The radial functions of an atom's pairs, as a gathering kernel reads them: from tables as it goes, or evaluated before.
#pragma once

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <int N> using Number = std::integral_constant<int, N>;
// body(m, n) for m < M, n < N.
template <int M, int N, class Body> MFMD_INLINE void each(const Body& body) {
  each<M>([&](auto m) __attribute__((always_inline)) { each<N>([&](auto n) __attribute__((always_inline)) { body(m, n); }); });
}

// Vectors of channels of one slab: value and, with SLOPE, slope of the parts FROM … TO of R. `lane`: 0, W, 2W … below 16.
template <class T, int R, bool SLOPE> struct TableWeights {
  const T* table;  // of the slab, [intervals][kCoefficients][R][16]
  const int* interval;
  const T* place;

  // slope: by the place in the interval.
  template <int FROM = 0, int TO = R> MFMD_INLINE void read(int p, int lane, Vec<T>* value, Vec<T>* slope) const {
    const T* row = table + static_cast<std::size_t>(interval[p]) * (kCoefficients * R * kSlab) + lane;
    const Vec<T> t = place[2 * static_cast<std::size_t>(p)] - Vec<T>{};
    each<kCoefficients>([&](auto k) __attribute__((always_inline)) {
      each<TO - FROM>([&](auto n) __attribute__((always_inline)) {
        constexpr int part = FROM + n;
        const Vec<T> x = at(row + ((kCoefficients - 1 - k) * R + part) * kSlab);
        if constexpr (SLOPE && k > 0) slope[part] = k == 1 ? value[part] : slope[part] * t + value[part];
        value[part] = k == 0 ? x : value[part] * t + x;
      });
    });
  }
  MFMD_INLINE T rate(int p) const { return place[2 * static_cast<std::size_t>(p) + 1]; }  // what makes slopes of those by distance
};
template <class T, int R, bool SLOPE> struct ExactWeights {
  const T *value_of, *slope_of;  // of the slab, for pairs from p0 on, [pairs][R][F]
  int p0, F;

  template <int FROM = 0, int TO = R> MFMD_INLINE void read(int p, int lane, Vec<T>* value, Vec<T>* slope) const {
    for (int part = FROM; part < TO; ++part) {
      const std::size_t from = (static_cast<std::size_t>(p - p0) * R + part) * F + lane;
      value[part] = at(value_of + from);
      if (SLOPE) slope[part] = at(slope_of + from);
    }
  }
  MFMD_INLINE T rate(int) const { return T(1); }
};

// Blocks of BLOCK lanes of a, halved and added up, each followed by the same of b.
template <int BLOCK, class V, std::size_t... K> MFMD_INLINE V halved(const V& a, const V& b, std::index_sequence<K...>) {
  constexpr std::size_t W = sizeof...(K), B = BLOCK, H = B / 2;
  return __builtin_shufflevector(a, b, (K % B < H ? K : W + K - H)...) + __builtin_shufflevector(a, b, (K % B < H ? K + H : W + K)...);
}
// The sums of N vectors, N a power of two: each step leaves half as many vectors of twice as many of them. out: N numbers or a vector, the sum of v[k]
// at summed<T, N>(k).
template <class T, int N> constexpr int summed(int k) {
  constexpr int W = Simd<T>::width;
  if constexpr (N > W) return k % (N / W) * W + k / (N / W);
  else return k * (W / N);
}
template <class T, int N, int BLOCK = Simd<T>::width> MFMD_INLINE void totals(Vec<T>* v, T* out) {
  constexpr int W = Simd<T>::width, LEFT = N > 1 ? N / 2 : 1;
  if constexpr (BLOCK > 1) {
    for (int k = 0; k < LEFT; ++k) v[k] = halved<BLOCK>(v[k], v[N > 1 ? k + LEFT : k], std::make_index_sequence<W>{});
    totals<T, LEFT, BLOCK / 2>(v, out);
  } else {
    for (int k = 0; k < N; ++k) at(out + k * W) = v[k];
  }
}
// take(p, sum of body(p)) for the pairs p0 … p1, the sums of some pairs together.
template <class T, class Body, class Take> MFMD_INLINE void over_sums(int p0, int p1, const Body& body, const Take& take) {
  constexpr int N = 8, W = Simd<T>::width;
  for (; p0 < p1; p0 += N) {
    const int n = p1 - p0 < N ? p1 - p0 : N;
    Vec<T> sums[N];
    alignas(64) T of[N > W ? N : W];
    for (int k = 0; k < n; ++k) sums[k] = body(p0 + k);
    for (int k = n; k < N; ++k) sums[k] = Vec<T>{};
    totals<T, N>(sums, of);
    for (int k = 0; k < n; ++k) take(p0 + k, of[summed<T, N>(k)]);
  }
}

// body(i, s, p0, p1, weights) for every atom i, slab s and its pairs from[i] … first[i + 1], in one piece from tables and in
// blocks exactly; of layer l (embedding: -1). Tables are gone through slab by slab: a slab's share of them and of the
// features near by stays in the caches while the atoms pass.
template <class T, bool TABLE, bool SLOPE, int R, class Body>
inline void over_pairs(const Weights<T>& w, int l, const Pairs<T>& pairs, const int* from, int begin, int end, T* scratch, const Body& body) {
  const int slabs = w.F / kSlab;
  if constexpr (TABLE) {
    const T* table = l < 0 ? w.embedding_table : w.layers[l].table;
    for (int s = 0; s < slabs; ++s) {
      const TableWeights<T, R, SLOPE> weights{table + static_cast<std::size_t>(s) * w.intervals * kCoefficients * R * kSlab, pairs.interval, pairs.place};
      for (int i = begin; i < end; ++i) body(i, s, from[i], pairs.first[i + 1], weights);
    }
  } else {
    T* value = scratch;
    T* slope = value + static_cast<std::size_t>(kPairBlock) * R * w.F;
    T* rest = SLOPE ? slope + static_cast<std::size_t>(kPairBlock) * R * w.F : slope;
    for (int i = begin; i < end; ++i) {
      int p0 = from[i];
      do {  // an atom without neighbours has one empty block
        const int left = pairs.first[i + 1] - p0, n = left < kPairBlock ? left : kPairBlock;
        radial<T>(w, l, pairs.d + p0, n, value, SLOPE ? slope : nullptr, rest);
        for (int s = 0; s < slabs; ++s)
          body(i, s, p0, p0 + n, ExactWeights<T, R, SLOPE>{value + s * kSlab, slope + s * kSlab, p0, w.F});
        p0 += n;
      } while (p0 < pairs.first[i + 1]);
    }
  }
}

}  // namespace MFMD_ISA
}  // namespace mfmd
