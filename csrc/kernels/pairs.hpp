// The radial functions of an atom's pairs, as a gathering kernel reads them: from tables as it goes, or evaluated before.
#pragma once

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

// Vectors of channels of one slab: value and, with SLOPE, dvalue/dd of all R parts. `lane`: 0, W, 2W … below 16.
template <class T, int R, bool SLOPE> struct TableWeights {
  const T* table;  // of the slab, [knots][3][R][16]
  const int* knot;
  const T* hermite;

  MFMD_INLINE void read(int p, int lane, Vec<T>* value, Vec<T>* slope) const {
    const T* row = table + static_cast<std::size_t>(knot[p]) * (3 * R * kSlab) + lane;
    const T* h = hermite + static_cast<std::size_t>(p) * kHermite;
    each<6>([&](auto k) __attribute__((always_inline)) {
      each<R>([&](auto part) __attribute__((always_inline)) {
        const Vec<T> x = at(row + (k * R + part) * kSlab);
        if constexpr (k == 0) {
          value[part] = x * h[0];
          if constexpr (SLOPE) slope[part] = x * h[6];
        } else {
          value[part] += x * h[k];
          if constexpr (SLOPE) slope[part] += x * h[6 + k];
        }
      });
    });
  }
};
template <class T, int R, bool SLOPE> struct ExactWeights {
  const T *value_of, *slope_of;  // of the slab, for pairs from p0 on, [pairs][R][F]
  int p0, F;

  MFMD_INLINE void read(int p, int lane, Vec<T>* value, Vec<T>* slope) const {
    for (int part = 0; part < R; ++part) {
      const std::size_t from = (static_cast<std::size_t>(p - p0) * R + part) * F + lane;
      value[part] = at(value_of + from);
      if (SLOPE) slope[part] = at(slope_of + from);
    }
  }
};

// body(i, s, p0, p1, weights) for every atom i, slab s and its pairs from[i] … first[i + 1], in one piece from tables and in
// blocks exactly; of layer l (embedding: -1). Tables are gone through slab by slab: a slab's share of them and of the
// features near by stays in the caches while the atoms pass.
template <class T, bool TABLE, bool SLOPE, int R, class Body>
inline void over_pairs(const Weights<T>& w, int l, const Pairs<T>& pairs, const int* from, int begin, int end, T* scratch, const Body& body) {
  const int slabs = w.F / kSlab;
  if constexpr (TABLE) {
    const T* table = l < 0 ? w.embedding_table : w.layers[l].table;
    for (int s = 0; s < slabs; ++s) {
      const TableWeights<T, R, SLOPE> weights{table + static_cast<std::size_t>(s) * w.knots * 3 * R * kSlab, pairs.knot, pairs.hermite};
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
