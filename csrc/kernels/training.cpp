// The three bilinear maps that training spends its time in. The set is closed under differentiation (the adjoint of each
// is one of them again), so gradients of forces need no further kernel. Pairs come one of each (i, j) and (j, i); `first`,
// `neighbor` and `pair` list them in rows of atoms, so that sums are gathered here too.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

// out[a] = sum over pairs of a of w[pair] * y[neighbor]; w: [pairs][R][F], y, out: [atoms][C][F].
template <class T>
void training_gather(const T* w, const T* y, const int* first, const int* neighbor, const int* pair, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R);
  for (int a = begin; a < end; ++a) {
    T* o = out + static_cast<std::size_t>(a) * C * F;
    for (std::size_t k = 0; k < C * F; ++k) o[k] = 0;
    for (int q = first[a]; q < first[a + 1]; ++q) {
      const T* weight = w + static_cast<std::size_t>(pair[q]) * R * F;
      const T* from = y + static_cast<std::size_t>(neighbor[q]) * C * F;
      for (int part = 0; part < R; ++part)
        for (int f = 0; f < F; f += W)
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
            at(o + k * F + f) += at(weight + part * F + f) * at(from + k * F + f);
    }
  }
}

// out[p][part] = sum over the part's components of a[i] b[j] + a[j] b[i]; a, b: [atoms][C][F], out: [pairs][R][F].
template <class T>
void training_dot(const T* a, const T* b, const int* i, const int* j, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t row = static_cast<std::size_t>(R * R) * static_cast<std::size_t>(F);
  for (int p = begin; p < end; ++p) {
    const T *ai = a + i[p] * row, *aj = a + j[p] * row, *bi = b + i[p] * row, *bj = b + j[p] * row;
    for (int part = 0; part < R; ++part)
      for (int f = 0; f < F; f += W) {
        Vec<T> sum{};
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
          sum += at(ai + k * F + f) * at(bj + k * F + f) + at(aj + k * F + f) * at(bi + k * F + f);
        at(out + (static_cast<std::size_t>(p) * R + part) * F + f) = sum;
      }
  }
}

// out = a b + b a for every atom and channel; [atoms][C][F].
template <class T> void training_anticommutator(const T* a, const T* b, T* out, int R, int F, int begin, int end) {
  with_rank(R - 1, [&](auto rank) {
    constexpr int RANK = decltype(rank)::value, W = Simd<T>::width, C = tensor::components(RANK);
    for (int n = begin; n < end; ++n)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(n) * C * F + f;
        Vec<T> va[C], vb[C], p[C];
        for (int k = 0; k < C; ++k) va[k] = at(a + row + k * F), vb[k] = at(b + row + k * F);
        tensor::anticommutator<RANK, T>(va, vb, p);
        for (int k = 0; k < C; ++k) at(out + row + k * F) = p[k];
      }
  });
}

#define MFMD_INSTANTIATE(T)                                                                                                     \
  template void training_gather<T>(const T*, const T*, const int*, const int*, const int*, T*, int, int, int, int);             \
  template void training_dot<T>(const T*, const T*, const int*, const int*, T*, int, int, int, int);                            \
  template void training_anticommutator<T>(const T*, const T*, T*, int, int, int, int);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
