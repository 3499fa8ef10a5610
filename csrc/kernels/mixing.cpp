// Channel mixing at the entrance of a message layer: y = mix_in(x / (|x|^2 + 1)), a matrix per part.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <class T> void mixing(const Weights<T>& w, int l, const T* x, T* y, int begin, int end, T* scratch) {
  const int F = w.F, C = w.C, W = Simd<T>::width;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    const std::size_t at0 = static_cast<std::size_t>(i) * C * F;
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const T* xi = x + at0 + static_cast<std::size_t>(a) * C * F + place(C, f);
        T* scaled = scratch + static_cast<std::size_t>(a) * C * F + place(C, f);
        Vec<T> norm = Vec<T>{} + T(1);
        for (int k = 0; k < C; ++k) norm += at(xi + k * kSlab) * at(xi + k * kSlab);
        const Vec<T> inverse = T(1) / norm;
        for (int k = 0; k < C; ++k) at(scaled + k * kSlab) = at(xi + k * kSlab) * inverse;
      }
    mix<T>(w, w.layers[l].mix_in, scratch, y + at0, atoms);
  }
}

template <class T>
void mixing_reverse(const Weights<T>& w, int l, const T* x, const T* ay, T* ax, int begin, int end, T*) {
  const int F = w.F, C = w.C, W = Simd<T>::width;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    const std::size_t at0 = static_cast<std::size_t>(i) * C * F;
    mix<T, true, true>(w, w.layers[l].mix_in, ay + at0, ax + at0, atoms);
    for (int a = 0; a < atoms; ++a)
      for (int f = 0; f < F; f += W) {
        const T* xi = x + at0 + static_cast<std::size_t>(a) * C * F + place(C, f);
        T* axi = ax + at0 + static_cast<std::size_t>(a) * C * F + place(C, f);
        Vec<T> norm = Vec<T>{} + T(1), dot{};
        for (int k = 0; k < C; ++k) {
          norm += at(xi + k * kSlab) * at(xi + k * kSlab);
          dot += at(xi + k * kSlab) * at(axi + k * kSlab);
        }
        const Vec<T> inverse = T(1) / norm, back = 2 * dot * inverse * inverse;
        for (int k = 0; k < C; ++k) at(axi + k * kSlab) = at(axi + k * kSlab) * inverse - at(xi + k * kSlab) * back;
      }
  }
}

#define MFMD_INSTANTIATE(T)                                                                   \
  template void mixing<T>(const Weights<T>&, int, const T*, T*, int, int, T*);                \
  template void mixing_reverse<T>(const Weights<T>&, int, const T*, const T*, T*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
