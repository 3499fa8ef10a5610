// Messages and their reverse: the twin of message.cpp.
#include "gather.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <int RANK, class T> __global__ void __launch_bounds__(kGatherThreads, 2) message_kernel(Table<T> table, Pairs<T> pairs, int rows, const T* self, int F, const T* y, T* m) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, F);
  if (q.row >= rows) return;
  const T* yi = y + q.at(q.row);
  Four<T> sum[C], v[R];
#pragma unroll
  for (int k = 0; k < C; ++k) sum[k] = load(self + tensor::part(k) * F + q.channel) * load(yi + k * kSlab);
  const std::size_t begin = static_cast<std::size_t>(q.row) * pairs.capacity, end = begin + pairs.count[q.row];
  for (std::size_t p = begin; p < end; ++p) {
    const T* yj = y + q.at(pairs.j[p]);
    weights.template read<false>(p, q.lane, v, nullptr);
#pragma unroll
    for (int k = 0; k < C; ++k) sum[k] += v[tensor::part(k)] * load(yj + k * kSlab);
  }
#pragma unroll
  for (int k = 0; k < C; ++k) store(m + q.at(q.row) + k * kSlab, sum[k]);
}

template <int RANK, class T>
__global__ void __launch_bounds__(kGatherThreads, 2)
    message_reverse_kernel(Table<T> table, Pairs<T> pairs, int rows, const T* self, int F, const T* y, const T* am, T* ay, T* slope, bool first) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, F);
  const bool mine = q.row < rows;  // threads beyond the last row stay: sums over a quad need the whole warp
  const int row = mine ? q.row : rows - 1, half = pairs.half[row], count = mine ? pairs.count[row] : 0;
  const T *yi = y + q.at(row), *ami = am + q.at(row);
  T* ayi = ay + q.at(row);
  Four<T> sum[C], v[R], dv[R];
#pragma unroll
  for (int k = 0; k < C; ++k) sum[k] = load(ayi + k * kSlab) + load(self + tensor::part(k) * F + q.channel) * load(ami + k * kSlab);
  const std::size_t begin = static_cast<std::size_t>(row) * pairs.capacity;
  for (std::size_t p = begin; p < begin + half; ++p) {
    const T* amj = am + q.at(pairs.j[p]);
    weights.template read<false>(p, q.lane, v, nullptr);
#pragma unroll
    for (int k = 0; k < C; ++k) sum[k] += v[tensor::part(k)] * load(amj + k * kSlab);
  }
  T* of_slab = slope + static_cast<std::size_t>(blockIdx.y) * rows * pairs.capacity;
  const int longest = largest_of_warp(count - half);
  for (int k0 = half; k0 < half + longest; ++k0) {
    const std::size_t p = begin + k0;
    Four<T> steep{};
    if (k0 < count) {
      const std::size_t other = q.at(pairs.j[p]);
      weights.template read<true>(p, q.lane, v, dv);
#pragma unroll
      for (int k = 0; k < C; ++k) {
        const Four<T> a = load(am + other + k * kSlab);
        steep += dv[tensor::part(k)] * (load(ami + k * kSlab) * load(y + other + k * kSlab) + a * load(yi + k * kSlab));
        sum[k] += v[tensor::part(k)] * a;
      }
    }
    const T along = quad_sum(total(steep));
    if (k0 < count && q.lane == 0) of_slab[p] = (first ? T(0) : of_slab[p]) + along * weights.rate(p);
  }
  if (!mine) return;
#pragma unroll
  for (int k = 0; k < C; ++k) store(ayi + k * kSlab, sum[k]);
}

// Of own messages: the sum of the pairs' weights, and the atom's own tensor times it.
template <int RANK, class T>
__global__ void __launch_bounds__(kGatherThreads, 2) own_message_kernel(Table<T> table, Pairs<T> pairs, int rows, const T* self, int F, const T* y, T* m, T* sums) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, F);
  if (q.row >= rows) return;
  Four<T> sum[R], v[R];
#pragma unroll
  for (int part = 0; part < R; ++part) sum[part] = load(self + part * F + q.channel);
  const std::size_t begin = static_cast<std::size_t>(q.row) * pairs.capacity, end = begin + pairs.count[q.row];
  for (std::size_t p = begin; p < end; ++p) {
    weights.template read<false>(p, q.lane, v, nullptr);
#pragma unroll
    for (int part = 0; part < R; ++part) sum[part] += v[part];
  }
#pragma unroll
  for (int part = 0; part < R; ++part) store(sums + q.template parts<R>(q.row) + part * kSlab, sum[part]);
#pragma unroll
  for (int k = 0; k < C; ++k) store(m + q.at(q.row) + k * kSlab, sum[tensor::part(k)] * load(y + q.at(q.row) + k * kSlab));
}

// The layer's dE/dd of each pair of atoms, both directions counted, once.
template <int RANK, class T>
__global__ void __launch_bounds__(kGatherThreads, 2) own_message_reverse_kernel(Table<T> table, Pairs<T> pairs, int rows, int F, const T* asums, T* slope, bool first) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, F);
  const bool mine = q.row < rows;  // threads beyond the last row stay: sums over a quad need the whole warp
  const int row = mine ? q.row : rows - 1, half = pairs.half[row], count = mine ? pairs.count[row] : 0;
  Four<T> ai[R], v[R], dv[R];
#pragma unroll
  for (int part = 0; part < R; ++part) ai[part] = load(asums + q.template parts<R>(row) + part * kSlab);
  const std::size_t begin = static_cast<std::size_t>(row) * pairs.capacity;
  T* of_slab = slope + static_cast<std::size_t>(blockIdx.y) * rows * pairs.capacity;
  const int longest = largest_of_warp(count - half);
  for (int k0 = half; k0 < half + longest; ++k0) {
    const std::size_t p = begin + k0;
    Four<T> steep{};
    if (k0 < count) {
      weights.template read<true>(p, q.lane, v, dv);
#pragma unroll
      for (int part = 0; part < R; ++part) steep += dv[part] * (ai[part] + load(asums + q.template parts<R>(pairs.j[p]) + part * kSlab));
    }
    const T along = quad_sum(total(steep));
    if (k0 < count && q.lane == 0) of_slab[p] = (first ? T(0) : of_slab[p]) + along * weights.rate(p);
  }
}

}  // namespace

template <class T> void message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) { over_pairs(message_kernel<decltype(rank)::value, T>, w, l, pairs, rows, stream, w.layers[l].self, w.F, y, m); });
}
template <class T>
void message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, const T* am, T* ay, T* slope, bool first, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) { over_pairs(message_reverse_kernel<decltype(rank)::value, T>, w, l, pairs, rows, stream, w.layers[l].self, w.F, y, am, ay, slope, first); });
}

template <class T> void own_message(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* y, T* m, T* sums, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) { over_pairs(own_message_kernel<decltype(rank)::value, T>, w, l, pairs, rows, stream, w.layers[l].self, w.F, y, m, sums); });
}
template <class T> void own_message_reverse(const Weights<T>& w, int l, const Pairs<T>& pairs, const T* asums, T* slope, bool first, int rows, cudaStream_t stream) {
  with_rank(w.rank, [&](auto rank) { over_pairs(own_message_reverse_kernel<decltype(rank)::value, T>, w, l, pairs, rows, stream, w.F, asums, slope, first); });
}

#define MFMD_INSTANTIATE(T)                                                                           \
  template void own_message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, T*, int, cudaStream_t); \
  template void own_message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, bool, int, cudaStream_t); \
  template void message<T>(const Weights<T>&, int, const Pairs<T>&, const T*, T*, int, cudaStream_t); \
  template void message_reverse<T>(const Weights<T>&, int, const Pairs<T>&, const T*, const T*, T*, T*, bool, int, cudaStream_t);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace cuda
}  // namespace mfmd
