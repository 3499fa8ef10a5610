// The radial functions of a block of pairs, as a gathering kernel reads them: from tables as it goes, or evaluated before.
#pragma once

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

// Of layer l (embedding: -1). The kernel calls block() once for a block of pairs and then reads vectors of channels.
template <class T, bool TABLE, bool SLOPE> class PairWeights {
 public:
  // scratch is used up to rest().
  PairWeights(const Weights<T>& w, int l, const Pairs<T>& pairs, T* scratch)
      : w_(w), l_(l), pairs_(pairs), table_(l < 0 ? w.embedding_table : w.layers[l].table), rf_(w.R * w.F), value_(scratch) {}
  static constexpr int kBlock = TABLE ? kTableBlock : kPairBlock;
  T* rest() const { return TABLE ? value_ : value_ + static_cast<std::size_t>(kPairBlock) * rf_ * (SLOPE ? 2 : 1); }

  void block(int p0, int n) {
    p0_ = p0;
    if (!TABLE) radial<T>(w_, l_, pairs_.d + p0, n, value_, SLOPE ? value_ + static_cast<std::size_t>(kPairBlock) * rf_ : nullptr, rest());
  }
  // Value and, with SLOPE, dvalue/dd of the functions c, c + 1, … (c = part * F + f) of the block's pair p.
  void read(int p, int c, Vec<T>& value, Vec<T>& slope) const {
    if (TABLE) {
      const T* row = table_ + static_cast<std::size_t>(pairs_.knot[p0_ + p]) * 3 * rf_ + c;
      const T* h = pairs_.hermite + static_cast<std::size_t>(p0_ + p) * kHermite;
      Vec<T> x = at(row);
      value = x * h[0];
      if (SLOPE) slope = x * h[6];
      for (int k = 1; k < 6; ++k) {
        x = at(row + k * rf_);
        value += x * h[k];
        if (SLOPE) slope += x * h[6 + k];
      }
    } else {
      const T* at0 = value_ + static_cast<std::size_t>(p) * rf_ + c;
      value = at(at0);
      if (SLOPE) slope = at(at0 + static_cast<std::size_t>(kPairBlock) * rf_);
    }
  }

 private:
  const Weights<T>& w_;
  const int l_;
  const Pairs<T>& pairs_;
  const T* table_;
  const int rf_;
  T* value_;
  int p0_ = 0;
};

// body(p0, n) for the neighbours of atom i, in blocks.
template <class T, class Body> inline void in_blocks(const Pairs<T>& pairs, int i, int block, const Body& body) {
  for (int p0 = pairs.first[i]; p0 < pairs.first[i + 1]; p0 += block) {
    const int left = pairs.first[i + 1] - p0;
    body(p0, left < block ? left : block);
  }
}

}  // namespace MFMD_ISA
}  // namespace mfmd
