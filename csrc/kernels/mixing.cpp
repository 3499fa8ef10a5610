// Channel mixing at the entrance of a message layer: y = mix_in(x / (|x|^2 + 1)), a matrix per part.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

template <class T> void mixing(const Weights<T>& w, int l, const T* x, T* y, int begin, int end, T* scratch) {
  const int F = w.F, C = w.C, W = Simd<T>::width;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    for (int a = 0; a < atoms; ++a) {
      const T* xi = x + static_cast<std::size_t>(i + a) * C * F;
      T* scaled = scratch + static_cast<std::size_t>(a) * C * F;
      for (int f = 0; f < F; f += W) {
        Vec<T> norm = Vec<T>{} + T(1);
        for (int k = 0; k < C; ++k) norm += at(xi + k * F + f) * at(xi + k * F + f);
        for (int k = 0; k < C; ++k) at(scaled + k * F + f) = at(xi + k * F + f) / norm;
      }
    }
    mix<T>(w, w.layers[l].mix_in, scratch, y + static_cast<std::size_t>(i) * C * F, atoms);
  }
}

template <class T>
void mixing_reverse(const Weights<T>& w, int l, const T* x, const T* ay, T* ax, int begin, int end, T*) {
  const int F = w.F, C = w.C, W = Simd<T>::width;
  for (int i = begin; i < end; i += kAtomBlock) {
    const int atoms = end - i < kAtomBlock ? end - i : kAtomBlock;
    const std::size_t at0 = static_cast<std::size_t>(i) * C * F;
    mix<T, true, true>(w, w.layers[l].mix_in, ay + at0, ax + at0, atoms);
    for (int a = 0; a < atoms; ++a) {
      const T* xi = x + at0 + static_cast<std::size_t>(a) * C * F;
      T* axi = ax + at0 + static_cast<std::size_t>(a) * C * F;
      for (int f = 0; f < F; f += W) {
        Vec<T> norm = Vec<T>{} + T(1), dot{};
        for (int k = 0; k < C; ++k) {
          norm += at(xi + k * F + f) * at(xi + k * F + f);
          dot += at(xi + k * F + f) * at(axi + k * F + f);
        }
        const Vec<T> inverse = T(1) / norm, back = 2 * dot * inverse * inverse;
        for (int k = 0; k < C; ++k) at(axi + k * F + f) = at(axi + k * F + f) * inverse - at(xi + k * F + f) * back;
      }
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
