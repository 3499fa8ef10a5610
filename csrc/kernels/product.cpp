// The O(3)-equivariant product of an atom's tensor with its message, and the update of its features
// (Simeon & De Fabritiis 2023, eqs. 9-11).
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

// One vector of channels, all components.
template <int RANK, class T> inline void load(const T* x, Vec<T>* v) {
  for (int k = 0; k < tensor::components(RANK); ++k) v[k] = at(x + k * kSlab);
}
template <int RANK, class T> inline Vec<T> norm1(const Vec<T>* v) {
  Vec<T> sum = Vec<T>{} + T(1);
  for (int k = 0; k < tensor::components(RANK); ++k) sum += v[k] * v[k];
  return sum;
}

// FACTOR: products are multiplied by what w.factor has for the slot of an atom.
template <int RANK, bool FACTOR, class T>
void forward(const Weights<T>& w, int l, const int* slot, const T* x, const T* y, const T* m, T* dx, T* next, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, C = tensor::components(RANK);
  const int F = w.F;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    [[maybe_unused]] const auto factor = [&](int a) { return w.factor[slot[i + a]]; };
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(i + a) * C * F + place(C, f), own = static_cast<std::size_t>(a) * C * F + place(C, f);
        Vec<T> vm[C], vy[C], p[C];
        load<RANK, T>(m + row, vm);
        load<RANK, T>(y + row, vy);
        tensor::anticommutator<RANK, T>(vm, vy, p);
        if constexpr (FACTOR)
          for (int k = 0; k < C; ++k) p[k] *= factor(a);
        const Vec<T> inverse = T(1) / norm1<RANK, T>(p);
        for (int k = 0; k < C; ++k) at(scratch + own + k * kSlab) = p[k] * inverse;
      }
    mix<T>(w, w.layers[l].mix_out, scratch, dx + static_cast<std::size_t>(i) * C * F, atoms);
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(i + a) * C * F + place(C, f);
        Vec<T> vx[C], d[C], square[C];
        load<RANK, T>(x + row, vx);
        load<RANK, T>(dx + row, d);
        tensor::anticommutator<RANK, T>(d, d, square);
        if constexpr (FACTOR)
          for (int k = 0; k < C; ++k) square[k] *= factor(a);
        const Vec<T> inverse = T(1) / norm1<RANK, T>(vx);
        for (int k = 0; k < C; ++k) at(next + row + k * kSlab) = vx[k] * inverse + d[k] + T(0.5) * square[k];
      }
  }
}

template <int RANK, bool FACTOR, class T>
void reverse(const Weights<T>& w, int l, const int* slot, const T* y, const T* m, const T* dx, const T* ax, T* am, T* ay, const T* sums, T* asums, int begin, int end,
             T* scratch) {
  constexpr int W = Simd<T>::width, C = tensor::components(RANK);
  const int F = w.F;
  T* adx = scratch;
  T* ap = scratch + static_cast<std::size_t>(kAtomBlock) * C * F;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    [[maybe_unused]] const auto factor = [&](int a) { return w.factor[slot[i + a]]; };
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(i + a) * C * F + place(C, f), own = static_cast<std::size_t>(a) * C * F + place(C, f);
        Vec<T> adjoint[C], d[C], through[C];
        load<RANK, T>(ax + row, adjoint);
        load<RANK, T>(dx + row, d);
        tensor::transpose<RANK>(d);
        tensor::anticommutator<RANK, T>(adjoint, d, through);
        if constexpr (FACTOR)
          for (int k = 0; k < C; ++k) through[k] *= factor(a);
        for (int k = 0; k < C; ++k) at(adx + own + k * kSlab) = adjoint[k] + through[k];
      }
    mix<T, true>(w, w.layers[l].mix_out, adx, ap, atoms);
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(i + a) * C * F + place(C, f), own = static_cast<std::size_t>(a) * C * F + place(C, f);
        Vec<T> vm[C], vy[C], p[C], back[C], out[C];
        load<RANK, T>(m + row, vm);
        load<RANK, T>(y + row, vy);
        load<RANK, T>(ap + own, back);
        tensor::anticommutator<RANK, T>(vm, vy, p);
        if constexpr (FACTOR)
          for (int k = 0; k < C; ++k) p[k] *= factor(a);
        const Vec<T> inverse = T(1) / norm1<RANK, T>(p);
        Vec<T> dot{};
        for (int k = 0; k < C; ++k) dot += back[k] * p[k];
        dot *= 2 * inverse * inverse;
        for (int k = 0; k < C; ++k) back[k] = back[k] * inverse - p[k] * dot;
        if constexpr (FACTOR)
          for (int k = 0; k < C; ++k) back[k] *= factor(a);
        tensor::transpose<RANK>(vy);
        tensor::transpose<RANK>(vm);
        tensor::anticommutator<RANK, T>(back, vy, out);
        for (int k = 0; k < C; ++k) at(am + row + k * kSlab) = out[k];
        tensor::anticommutator<RANK, T>(back, vm, out);
        for (int k = 0; k < C; ++k) at(ay + row + k * kSlab) = out[k];
        if (!sums) continue;
        const std::size_t parts = static_cast<std::size_t>(i + a) * (RANK + 1) * F + place(RANK + 1, f);
        for (int part = 0; part <= RANK; ++part) {
          Vec<T> sum{};
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
            const Vec<T> adjoint = at(am + row + k * kSlab);
            sum += adjoint * at(y + row + k * kSlab);
            at(ay + row + k * kSlab) += adjoint * at(sums + parts + part * kSlab);
          }
          at(asums + parts + part * kSlab) = sum;
        }
      }
  }
}

}  // namespace

template <class T>
void product(const Weights<T>& w, int l, const int* slot, const T* x, const T* y, const T* m, T* dx, T* next, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (w.factor) forward<decltype(rank)::value, true, T>(w, l, slot, x, y, m, dx, next, begin, end, scratch);
    else forward<decltype(rank)::value, false, T>(w, l, slot, x, y, m, dx, next, begin, end, scratch);
  });
}
template <class T>
void product_reverse(const Weights<T>& w, int l, const int* slot, const T* y, const T* m, const T* dx, const T* ax, T* am, T* ay, const T* sums, T* asums, int begin, int end,
                     T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (w.factor) reverse<decltype(rank)::value, true, T>(w, l, slot, y, m, dx, ax, am, ay, sums, asums, begin, end, scratch);
    else reverse<decltype(rank)::value, false, T>(w, l, slot, y, m, dx, ax, am, ay, sums, asums, begin, end, scratch);
  });
}

#define MFMD_INSTANTIATE(T)                                                                                        \
  template void product<T>(const Weights<T>&, int, const int*, const T*, const T*, const T*, T*, T*, int, int, T*); \
  template void product_reverse<T>(const Weights<T>&, int, const int*, const T*, const T*, const T*, const T*, T*, T*, const T*, T*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
