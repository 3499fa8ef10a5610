// Messages: a weighted gather of the neighbours' mixed tensors, the weights functions of distance alone.
#include "pairs.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

template <int RANK, bool TABLE, class T>
void forward(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F;
  const std::size_t row = static_cast<std::size_t>(C) * F;
  const T* self = w.layers[l].self;
  PairWeights<T, TABLE, false> weights(w, l, pairs, scratch);
  for (int i = begin; i < end; ++i) {
    const T* yi = y + i * row;
    T* mi = m + i * row;
    for (int part = 0; part < R; ++part)
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
        for (int f = 0; f < F; f += W) at(mi + k * F + f) = at(self + part * F + f) * at(yi + k * F + f);
    in_blocks(pairs, i, weights.kBlock, [&](int p0, int n) {
      weights.block(p0, n);
      for (int f = 0; f < F; f += W) {
        Vec<T> sum[C], v, none;
        for (int k = 0; k < C; ++k) sum[k] = at(mi + k * F + f);
        for (int p = 0; p < n; ++p) {
          const T* yj = y + pairs.j[p0 + p] * row + f;
          for (int part = 0; part < R; ++part) {
            weights.read(p, part * F + f, v, none);
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) sum[k] += v * at(yj + k * F);
          }
        }
        for (int k = 0; k < C; ++k) at(mi + k * F + f) = sum[k];
      }
    });
  }
}

// ay[i] += radial * am[j] over the same neighbours (the list is symmetric), and the layer's dE/dd of each pair,
// both directions counted.
template <int RANK, bool TABLE, class T>
void reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, double* slope, int begin, int end, T* scratch) {
  constexpr int W = Simd<T>::width, R = RANK + 1, C = R * R;
  const int F = w.F;
  const std::size_t row = static_cast<std::size_t>(C) * F;
  const T* self = w.layers[l].self;
  PairWeights<T, TABLE, true> weights(w, l, pairs, scratch);
  for (int i = begin; i < end; ++i) {
    const T *yi = y + i * row, *ami = am + i * row;
    T* ayi = ay + i * row;
    for (int part = 0; part < R; ++part)
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
        for (int f = 0; f < F; f += W) at(ayi + k * F + f) += at(self + part * F + f) * at(ami + k * F + f);
    in_blocks(pairs, i, weights.kBlock, [&](int p0, int n) {
      weights.block(p0, n);
      Vec<T> steep[weights.kBlock];  // summed over channels pass by pass
      for (int p = 0; p < n; ++p) steep[p] = Vec<T>{};
      for (int f = 0; f < F; f += W) {
        Vec<T> sum[C], own_y[C], own_am[C], v, dv;
        for (int k = 0; k < C; ++k) sum[k] = at(ayi + k * F + f), own_y[k] = at(yi + k * F + f), own_am[k] = at(ami + k * F + f);
        for (int p = 0; p < n; ++p) {
          const std::size_t other = pairs.j[p0 + p] * row + f;
          Vec<T> total_slope = steep[p];
          for (int part = 0; part < R; ++part) {
            weights.read(p, part * F + f, v, dv);
            Vec<T> dot{};
            for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
              const Vec<T> amj = at(am + other + k * F);
              dot += own_am[k] * at(y + other + k * F) + amj * own_y[k];
              sum[k] += v * amj;
            }
            total_slope += dv * dot;
          }
          steep[p] = total_slope;
        }
        for (int k = 0; k < C; ++k) at(ayi + k * F + f) = sum[k];
      }
      for (int p = 0; p < n; ++p) slope[p0 + p] += total<T>(steep[p]);
    });
  }
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

#define MFMD_INSTANTIATE(T)                                                                                \
  template void message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, int, int, T*);           \
  template void message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, const T*, T*, double*, int, int, T*);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
