// Messages: a weighted gather of the neighbours' mixed tensors, or the atom's own times the sum of the weights; these are functions of distance alone.
#include "pairs.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

template <int RANK, bool TABLE, class T>
void forward(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const std::size_t row = static_cast<std::size_t>(C) * w.F;
  over_pairs<T, TABLE, false, R>(w, l, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* self = w.layers[l].self + s * kSlab;
    const T* ys = y + s * C * kSlab;
    for (int lane = 0; lane < kSlab; lane += W) {
      T* mi = m + i * row + s * C * kSlab + lane;
      const T* yi = ys + i * row + lane;
      Vec<T> sum[C], v[R];
      const bool fresh = p0 == pairs.first[i];
      each<C>([&](auto k) __attribute__((always_inline)) { sum[k] = fresh ? at(self + tensor::part(k) * w.F + lane) * at(yi + k * kSlab) : at(mi + k * kSlab); });
      for (int p = p0; p < p1; ++p) {
        const T* yj = ys + pairs.j[p] * row + lane;
        weights.read(p, lane, v, nullptr);
        each<C>([&](auto k) __attribute__((always_inline)) { sum[k] += v[tensor::part(k)] * at(yj + k * kSlab); });
      }
      each<C>([&](auto k) __attribute__((always_inline)) { at(mi + k * kSlab) = sum[k]; });
    }
  });
}

// ay[i] += radial * am[j] over the same neighbours (the list is symmetric), and the layer's dE/dd of each pair of atoms,
// both directions counted, once.
template <int RANK, bool TABLE, class T>
void reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const std::size_t row = static_cast<std::size_t>(C) * w.F;
  over_pairs<T, TABLE, true, R>(w, l, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* self = w.layers[l].self + s * kSlab;
    const int half = pairs.half[i] < p0 ? p0 : pairs.half[i] < p1 ? pairs.half[i] : p1;
    for (int lane = 0; lane < kSlab; lane += W) {
      const std::size_t slab = static_cast<std::size_t>(s) * C * kSlab + lane;
      T* ayi = ay + i * row + slab;
      const T *yi = y + i * row + slab, *ami = am + i * row + slab;
      Vec<T> sum[C], v[R], dv[R];
      const bool fresh = p0 == pairs.first[i];
      each<C>([&](auto k) __attribute__((always_inline)) {
        sum[k] = at(ayi + k * kSlab);
        if (fresh) sum[k] += at(self + tensor::part(k) * w.F + lane) * at(ami + k * kSlab);
      });
      for (int p = p0; p < half; ++p) {
        const T* amj = am + pairs.j[p] * row + slab;
        weights.read(p, lane, v, dv);
        each<C>([&](auto k) __attribute__((always_inline)) { sum[k] += v[tensor::part(k)] * at(amj + k * kSlab); });
      }
      for (int p = half; p < p1; ++p) {
        const T *amj = am + pairs.j[p] * row + slab, *yj = y + pairs.j[p] * row + slab;
        weights.read(p, lane, v, dv);
        Vec<T> dot[R], steep{};
        each<C>([&](auto k) __attribute__((always_inline)) {
          constexpr int part = tensor::part(k);
          const Vec<T> a = at(amj + k * kSlab), both = at(ami + k * kSlab) * at(yj + k * kSlab) + a * at(yi + k * kSlab);
          if constexpr (k == tensor::first(part)) dot[part] = both;
          else dot[part] += both;
          sum[k] += v[part] * a;
        });
        each<R>([&](auto part) __attribute__((always_inline)) { steep += dv[part] * dot[part]; });
        slope[p] += total<T>(steep);
      }
      each<C>([&](auto k) __attribute__((always_inline)) { at(ayi + k * kSlab) = sum[k]; });
    }
  });
}

// Of own messages: the sum of the pairs' weights, and the atom's own tensor times it.
template <int RANK, bool TABLE, class T>
void own_forward(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, T* sums, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  over_pairs<T, TABLE, false, R>(w, l, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* self = w.layers[l].self + s * kSlab;
    const std::size_t slab = static_cast<std::size_t>(i) * w.F + s * kSlab;
    for (int lane = 0; lane < kSlab; lane += W) {
      T* to = sums + slab * R + lane;
      Vec<T> sum[R], v[R];
      const bool fresh = p0 == pairs.first[i];
      each<R>([&](auto part) __attribute__((always_inline)) { sum[part] = at(fresh ? self + part * w.F + lane : to + part * kSlab); });
      for (int p = p0; p < p1; ++p) {
        weights.read(p, lane, v, nullptr);
        each<R>([&](auto part) __attribute__((always_inline)) { sum[part] += v[part]; });
      }
      each<R>([&](auto part) __attribute__((always_inline)) { at(to + part * kSlab) = sum[part]; });
      each<C>([&](auto k) __attribute__((always_inline)) { at(m + slab * C + k * kSlab + lane) = sum[tensor::part(k)] * at(y + slab * C + k * kSlab + lane); });
    }
  });
}

// The layer's dE/dd of each pair of atoms, both directions counted, once.
template <int RANK, bool TABLE, class T>
void own_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* asums, double* slope, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1;
  over_pairs<T, TABLE, true, R>(w, l, pairs, pairs.half, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const T* ai = asums + (static_cast<std::size_t>(i) * w.F + s * kSlab) * R;
    for (int p = p0; p < p1; ++p) {
      const T* aj = asums + (static_cast<std::size_t>(pairs.j[p]) * w.F + s * kSlab) * R;
      Vec<T> steep{}, v[R], dv[R];
      for (int lane = 0; lane < kSlab; lane += W) {
        weights.read(p, lane, v, dv);
        each<R>([&](auto part) __attribute__((always_inline)) { steep += dv[part] * (at(ai + part * kSlab + lane) + at(aj + part * kSlab + lane)); });
      }
      slope[p] += total<T>(steep);
    }
  });
}

}  // namespace

template <class T>
void message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) forward<decltype(rank)::value, true, T>(w, l, pairs, y, m, begin, end, scratch);
    else forward<decltype(rank)::value, false, T>(w, l, pairs, y, m, begin, end, scratch);
  });
}
template <class T>
void message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin,
                     int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) reverse<decltype(rank)::value, true, T>(w, l, pairs, y, am, ay, slope, begin, end, scratch);
    else reverse<decltype(rank)::value, false, T>(w, l, pairs, y, am, ay, slope, begin, end, scratch);
  });
}

template <class T>
void own_message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, T* sums, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) own_forward<decltype(rank)::value, true, T>(w, l, pairs, y, m, sums, begin, end, scratch);
    else own_forward<decltype(rank)::value, false, T>(w, l, pairs, y, m, sums, begin, end, scratch);
  });
}
template <class T>
void own_message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* asums, double* slope, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.knot) own_reverse<decltype(rank)::value, true, T>(w, l, pairs, asums, slope, begin, end, scratch);
    else own_reverse<decltype(rank)::value, false, T>(w, l, pairs, asums, slope, begin, end, scratch);
  });
}

#define MFMD_INSTANTIATE(T)                                                                                \
  template void own_message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, T*, int, int, T*);   \
  template void own_message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, double*, int, int, T*); \
  template void message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, int, int, T*);           \
  template void message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, const T*, T*, double*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
