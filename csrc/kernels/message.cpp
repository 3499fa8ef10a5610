// Messages: a weighted gather of the neighbours' mixed tensors, or the atom's own times the sum of the weights; these are functions of distance alone.
#include "pairs.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

// Vectors of a slab that pairs are gone through with at a time, so that a line of the caches is read once. There are not registers for two of all parts:
// the last part then has a pass of its own.
template <class T> constexpr int kVectors = Simd<T>::width == kSlab ? 1 : 2;
template <class T, int RANK, class Body> inline void over_parts(const Body& body) {
  if constexpr (kVectors<T> == 1 || RANK < 2) {
    body(Number<0>{}, Number<RANK + 1>{});
  } else {
    body(Number<0>{}, Number<RANK>{});
    body(Number<RANK>{}, Number<RANK + 1>{});
  }
}

template <int FROM, int TO, int RANK, bool TABLE, class T>
void forward(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, V = kVectors<T>, R = RANK + 1, C = R * R, first = tensor::first(FROM), N = tensor::first(TO) - first;
  const std::size_t row = static_cast<std::size_t>(C) * w.F;
  over_pairs<T, TABLE, false, R>(w, l, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const bool fresh = p0 == pairs.first[i];
    for (int lane = 0; lane < kSlab; lane += V * W) {
      const T *self = w.layers[l].self + s * kSlab + lane, *ys = y + (s * C + first) * kSlab + lane, *yi = ys + i * row;
      T* mi = m + i * row + (s * C + first) * kSlab + lane;
      Vec<T> sum[V][N];
      each<V, N>([&](auto v, auto k) __attribute__((always_inline)) {
        constexpr int at_k = k * kSlab + v * W;
        sum[v][k] = fresh ? at(self + tensor::part(first + k) * w.F + v * W) * at(yi + at_k) : at(mi + at_k);
      });
      for (int p = p0; p < p1; ++p) {
        const T* yj = ys + pairs.j[p] * row;
        each<V>([&](auto v) __attribute__((always_inline)) {
          Vec<T> value[R];
          weights.template read<FROM, TO>(p, lane + v * W, value, nullptr);
          each<N>([&](auto k) __attribute__((always_inline)) { sum[v][k] += value[tensor::part(first + k)] * at(yj + k * kSlab + v * W); });
        });
      }
      each<V, N>([&](auto v, auto k) __attribute__((always_inline)) { at(mi + k * kSlab + v * W) = sum[v][k]; });
    }
  });
}

// ay[i] += radial * am[j] over the same neighbours (the list is symmetric), and the layer's dE/dd of each pair of atoms,
// both directions counted, once.
template <int FROM, int TO, int RANK, bool TABLE, class T>
void reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, V = kVectors<T>, R = RANK + 1, C = R * R, first = tensor::first(FROM), N = tensor::first(TO) - first;
  const std::size_t row = static_cast<std::size_t>(C) * w.F;
  over_pairs<T, TABLE, true, R>(w, l, pairs, pairs.first, begin, end, scratch, [&](int i, int s, int p0, int p1, const auto& weights) {
    const bool fresh = p0 == pairs.first[i];
    const int half = pairs.half[i] < p0 ? p0 : pairs.half[i] < p1 ? pairs.half[i] : p1;
    for (int lane = 0; lane < kSlab; lane += V * W) {
      const std::size_t slab = static_cast<std::size_t>(s * C + first) * kSlab + lane;
      const T *self = w.layers[l].self + s * kSlab + lane, *yi = y + i * row + slab, *ami = am + i * row + slab;
      T* ayi = ay + i * row + slab;
      Vec<T> sum[V][N];
      each<V, N>([&](auto v, auto k) __attribute__((always_inline)) {
        constexpr int at_k = k * kSlab + v * W;
        sum[v][k] = at(ayi + at_k);
        if (fresh) sum[v][k] += at(self + tensor::part(first + k) * w.F + v * W) * at(ami + at_k);
      });
      for (int p = p0; p < half; ++p) {
        const T* amj = am + pairs.j[p] * row + slab;
        each<V>([&](auto v) __attribute__((always_inline)) {
          Vec<T> value[R], dvalue[R];
          weights.template read<FROM, TO>(p, lane + v * W, value, dvalue);
          each<N>([&](auto k) __attribute__((always_inline)) { sum[v][k] += value[tensor::part(first + k)] * at(amj + k * kSlab + v * W); });
        });
      }
      const auto steepness = [&](int p) __attribute__((always_inline)) {
        const T *amj = am + pairs.j[p] * row + slab, *yj = y + pairs.j[p] * row + slab;
        Vec<T> steep{};
        each<V>([&](auto v) __attribute__((always_inline)) {
          Vec<T> value[R], dvalue[R], dot[R];
          weights.template read<FROM, TO>(p, lane + v * W, value, dvalue);
          each<N>([&](auto k) __attribute__((always_inline)) {
            constexpr int part = tensor::part(first + k), at_k = k * kSlab + v * W;
            const Vec<T> a = at(amj + at_k), both = at(ami + at_k) * at(yj + at_k) + a * at(yi + at_k);
            if constexpr (first + k == tensor::first(part)) dot[part] = both;
            else dot[part] += both;
            sum[v][k] += value[part] * a;
          });
          each<TO - FROM>([&](auto n) __attribute__((always_inline)) { steep += dvalue[FROM + n] * dot[FROM + n]; });
        });
        return steep;
      };
      over_sums<T>(half, p1, steepness, [&](int p, T steep) { slope[p] += steep * weights.rate(p); });
      each<V, N>([&](auto v, auto k) __attribute__((always_inline)) { at(ayi + k * kSlab + v * W) = sum[v][k]; });
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
    over_sums<T>(p0, p1, [&](int p) {
      const T* aj = asums + (static_cast<std::size_t>(pairs.j[p]) * w.F + s * kSlab) * R;
      Vec<T> steep{}, v[R], dv[R];
      for (int lane = 0; lane < kSlab; lane += W) {
        weights.read(p, lane, v, dv);
        each<R>([&](auto part) __attribute__((always_inline)) { steep += dv[part] * (at(ai + part * kSlab + lane) + at(aj + part * kSlab + lane)); });
      }
      return steep;
    }, [&](int p, T steep) { slope[p] += steep * weights.rate(p); });
  });
}

}  // namespace

template <class T>
void message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    constexpr int RANK = decltype(rank)::value;
    if (pairs.interval) over_parts<T, RANK>([&](auto from, auto to) { forward<from, to, RANK, true, T>(w, l, pairs, y, m, begin, end, scratch); });
    else forward<0, RANK + 1, RANK, false, T>(w, l, pairs, y, m, begin, end, scratch);
  });
}
template <class T>
void message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin,
                     int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    constexpr int RANK = decltype(rank)::value;
    if (pairs.interval) over_parts<T, RANK>([&](auto from, auto to) { reverse<from, to, RANK, true, T>(w, l, pairs, y, am, ay, slope, begin, end, scratch); });
    else reverse<0, RANK + 1, RANK, false, T>(w, l, pairs, y, am, ay, slope, begin, end, scratch);
  });
}

template <class T>
void own_message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, T* sums, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.interval) own_forward<decltype(rank)::value, true, T>(w, l, pairs, y, m, sums, begin, end, scratch);
    else own_forward<decltype(rank)::value, false, T>(w, l, pairs, y, m, sums, begin, end, scratch);
  });
}
template <class T>
void own_message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* asums, double* slope, int begin, int end, T* scratch) {
  with_rank(w.rank, [&](auto rank) {
    if (pairs.interval) own_reverse<decltype(rank)::value, true, T>(w, l, pairs, asums, slope, begin, end, scratch);
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
