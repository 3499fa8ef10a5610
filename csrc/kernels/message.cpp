// Messages: a weighted gather of the neighbours' mixed tensors, the weights functions of distance alone.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <class T>
void message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width;
  const int F = w.F, R = w.R, C = w.C, block = pairs.knot ? kTableBlock : kPairBlock;
  const T* self = w.layers[l].self;
  T* value = scratch;
  T* rest = value + kPairBlock * R * F;
  for (int i = begin; i < end; ++i) {
    const T* yi = y + static_cast<std::size_t>(i) * C * F;
    T* mi = m + static_cast<std::size_t>(i) * C * F;
    const auto add = [&](const T* v, const T* from, bool first) {
      for (int part = 0; part < R; ++part)
        for (int f = 0; f < F; f += W) {
          const Vec<T> weight = at(v + part * F + f);
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
            const Vec<T> share = weight * at(from + k * F + f);
            at(mi + k * F + f) = first ? share : at(mi + k * F + f) + share;
          }
        }
    };
    add(self, yi, true);
    for (int p0 = pairs.first[i]; p0 < pairs.first[i + 1]; p0 += block) {
      const int left = pairs.first[i + 1] - p0, n = left < block ? left : block;
      radial<T>(w, l, pairs, p0, n, value, nullptr, rest);
      for (int p = 0; p < n; ++p)
        add(value + static_cast<std::size_t>(p) * R * F, y + static_cast<std::size_t>(pairs.j[p0 + p]) * C * F, false);
    }
  }
}

// ay[i] += radial * am[j] over the same neighbours (the list is symmetric), and the layer's dE/dd of each pair,
// both directions counted.
template <class T>
void message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin,
                     int end, T* scratch) {
  constexpr int W = Simd<T>::width;
  const int F = w.F, R = w.R, C = w.C, block = pairs.knot ? kTableBlock : kPairBlock;
  const T* self = w.layers[l].self;
  T* value = scratch;
  T* dvalue = value + kPairBlock * R * F;
  T* rest = dvalue + kPairBlock * R * F;
  for (int i = begin; i < end; ++i) {
    const T* yi = y + static_cast<std::size_t>(i) * C * F;
    const T* ami = am + static_cast<std::size_t>(i) * C * F;
    T* ayi = ay + static_cast<std::size_t>(i) * C * F;
    for (int part = 0; part < R; ++part)
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
        for (int f = 0; f < F; f += W) at(ayi + k * F + f) += at(self + part * F + f) * at(ami + k * F + f);
    for (int p0 = pairs.first[i]; p0 < pairs.first[i + 1]; p0 += block) {
      const int left = pairs.first[i + 1] - p0, n = left < block ? left : block;
      radial<T>(w, l, pairs, p0, n, value, dvalue, rest);
      for (int p = 0; p < n; ++p) {
        const T* yj = y + static_cast<std::size_t>(pairs.j[p0 + p]) * C * F;
        const T* amj = am + static_cast<std::size_t>(pairs.j[p0 + p]) * C * F;
        Vec<T> steep{};
        for (int part = 0; part < R; ++part) {
          const T* v = value + (static_cast<std::size_t>(p) * R + part) * F;
          const T* dv = dvalue + (static_cast<std::size_t>(p) * R + part) * F;
          for (int f = 0; f < F; f += W) {
            Vec<T> dot{};
            const Vec<T> weight = at(v + f);
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
              dot += at(ami + k * F + f) * at(yj + k * F + f) + at(amj + k * F + f) * at(yi + k * F + f);
              at(ayi + k * F + f) += weight * at(amj + k * F + f);
            }
            steep += at(dv + f) * dot;
          }
        }
        slope[p0 + p] += total<T>(steep);
      }
    }
  }
}

#define MFMD_INSTANTIATE(T)                                                                                \
  template void message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, int, int, T*);           \
  template void message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, const T*, T*, double*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
