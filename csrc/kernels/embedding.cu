// The first tensors of an atom, their gates and the entrance of the first layer, and the reverse of the gather: the twin of embedding.cpp.
#include "gather.hpp"
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T> struct Elements {  // weights that elements decide
  const T *first, *second, *self;  // [slots][F]
  int F;
};

template <int RANK, class T>
__global__ void __launch_bounds__(kGatherThreads, 2) embedding_gather_kernel(Table<T> table, Pairs<T> pairs, int rows, Elements<T> elements, const int* slot, T* raw) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, elements.F);
  if (q.row >= rows) return;
  const Four<T> zi = load(elements.first + static_cast<std::size_t>(slot[q.row]) * elements.F + q.channel);
  const T* second = elements.second + q.channel;
  Four<T> sum[C], v[R];
#pragma unroll
  for (int k = 0; k < C; ++k) sum[k] = k == 0 ? load(elements.self + static_cast<std::size_t>(slot[q.row]) * elements.F + q.channel) : Four<T>{};
  const std::size_t begin = static_cast<std::size_t>(q.row) * pairs.capacity, end = begin + pairs.count[q.row];
  for (std::size_t p = begin; p < end; ++p) {
    const Four<T> zij = zi + load(second + static_cast<std::size_t>(slot[pairs.j[p]]) * elements.F);
    const T* basis = pairs.basis + p * kMaxComponents;
    weights.template read<false>(p, q.lane, v, nullptr);
#pragma unroll
    for (int part = 0; part < R; ++part) v[part] = v[part] * zij;
#pragma unroll
    for (int k = 0; k < C; ++k) sum[k] += v[tensor::part(k)] * basis[k];
  }
#pragma unroll
  for (int k = 0; k < C; ++k) store(raw + q.at(q.row) + k * kSlab, sum[k]);
}

// Of each pair of atoms once: dE/dd through the radial functions, and dE/du.
template <int RANK, class T>
__global__ void __launch_bounds__(kGatherThreads, 2)
    embedding_gather_reverse_kernel(Table<T> table, Pairs<T> pairs, int rows, Elements<T> elements, const int* slot, const T* araw, T* slope, T* turn, bool first) {
  wait_for_what_is_before();
  constexpr int R = RANK + 1, C = R * R;
  const TableWeights<T, R> weights(table, pairs);
  const Quad q(C, elements.F);
  const bool mine = q.row < rows;  // threads beyond the last row stay: sums over a quad need the whole warp
  const int row = mine ? q.row : rows - 1, half = pairs.half[row], count = mine ? pairs.count[row] : 0;
  const T* ai = araw + q.at(row);
  const std::size_t begin = static_cast<std::size_t>(row) * pairs.capacity, of_slab = static_cast<std::size_t>(blockIdx.y) * rows * pairs.capacity;
  const int longest = largest_of_warp(count - half);
  for (int k0 = half; k0 < half + longest; ++k0) {
    const std::size_t p = begin + k0;
    T along = 0, du[3] = {};
    if (k0 < count) {
      const int j = pairs.j[p];
      const T* aj = araw + q.at(j);
      const std::size_t zi = static_cast<std::size_t>(slot[row]) * elements.F + q.channel, zj = static_cast<std::size_t>(slot[j]) * elements.F + q.channel;
      const Four<T> there = load(elements.first + zi) + load(elements.second + zj), back = load(elements.first + zj) + load(elements.second + zi);
      const T* basis = pairs.basis + p * kMaxComponents;
      Four<T> v[R], dv[R];
      weights.template read<true>(p, q.lane, v, dv);
      // The reversed pair sees -u, so the antisymmetric part changes sign.
      const auto both = [&](int k) { return there * load(ai + k * kSlab) + (k > 0 && k < 4 ? -back : back) * load(aj + k * kSlab); };
      Four<T> steep = dv[0] * basis[0] * both(0);
      if constexpr (R > 1) {
        Four<T> sum{};
#pragma unroll
        for (int a = 0; a < 3; ++a) {
          const Four<T> b = both(1 + a);
          sum += b * basis[1 + a];
          du[a] += T(tensor::kSqrt2) * total(v[1] * b);
        }
        steep += dv[1] * sum;
      }
      if constexpr (R > 2) {
        Four<T> b[5], g[3];
#pragma unroll
        for (int m = 0; m < 5; ++m) b[m] = both(4 + m);
        steep += dv[2] * tensor::symmetric_turn<T>(basis + 1, b, g);
#pragma unroll
        for (int a = 0; a < 3; ++a) du[a] += total(v[2] * g[a]);
      }
      along = total(steep) * weights.rate(p);
    }
    along = quad_sum(along);
    for (T& d : du) d = quad_sum(d);
    if (k0 >= count || q.lane != 0) continue;
    slope[of_slab + p] = first ? along : slope[of_slab + p] + along;
    for (int a = 0; a < 3; ++a) turn[3 * (of_slab + p) + a] = du[a];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    embedding_mix_kernel(Block<T> block, int rows, Mixers<T> mixers, Mixing<T> enter, Norm<T> norm, Dense<T> gate0, Dense<T> gate1, const T* raw, T* x, T* mixed, T* kept) {
  wait_for_what_is_before();
  const int F = block.F, C = block.C, begin = block.begin(), atoms = block.count(rows);
  T *in = shared<T>(), *scaled = in + block.atoms * C * F, *hidden = scaled + block.atoms * F;
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    T sum = T(0);
    for (int k = 0; k < C; ++k) {
      const T v = raw[row + k * kSlab];
      in[(a * C + k) * F + f] = v;
      sum += v * v;
    }
    scaled[a * F + f] = sum;
  });
  __syncthreads();
  for (int a = threadIdx.x / 32; a < atoms; a += kThreads / 32) {
    const Gates<T> g(block, kept, begin + a);
    const T inverse = layer_norm(norm, scaled + a * F, F, g.normal, scaled + a * F);
    if (threadIdx.x % 32 == 0) *g.inverse = inverse;
  }
  __syncthreads();
  dense(block, scaled, gate0.w, gate0.b, atoms, F, 2 * F, [&](int a, int f, Four<T> v) {
    Four<T> slope;
    for (int k = 0; k < 4; ++k) v.v[k] = silu(v.v[k], slope.v[k]);
    store(hidden + a * 2 * F + f, v);
    store(Gates<T>(block, kept, begin + a).slope1 + f, slope);
  });
  __syncthreads();
  dense(block, hidden, gate1.w, gate1.b, atoms, 2 * F, block.R * F, [&](int a, int f, Four<T> v) {
    Four<T> slope;
    for (int k = 0; k < 4; ++k) v.v[k] = silu(v.v[k], slope.v[k]);
    const Gates<T> g(block, kept, begin + a);
    store(g.gate + f, v);
    store(g.slope2 + f, slope);
  });
  __syncthreads();
  mix(block, mixers, in, atoms, [&](int a, int k, int f, const Four<T>& v) {
    const std::size_t at = block.at(begin + a, f) + k * kSlab;
    store(mixed + at, v);
    store(x + at, v * load(Gates<T>(block, kept, begin + a).gate + tensor::part(k) * F + f));
  });
  enter(block, rows, x);
}

}  // namespace

template <class T> void embedding_gather(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, T* raw, int rows, cudaStream_t stream) {
  const Elements<T> elements{w.first, w.second, w.self_embedding, w.F};
  with_rank(w.rank, [&](auto rank) { over_pairs(embedding_gather_kernel<decltype(rank)::value, T>, w, -1, pairs, rows, stream, elements, slot, raw); });
}
template <class T>
void embedding_gather_reverse(const Weights<T>& w, const Pairs<T>& pairs, const int* slot, const T* araw, T* slope, T* turn, bool first, int rows, cudaStream_t stream) {
  const Elements<T> elements{w.first, w.second, w.self_embedding, w.F};
  with_rank(w.rank, [&](auto rank) { over_pairs(embedding_gather_reverse_kernel<decltype(rank)::value, T>, w, -1, pairs, rows, stream, elements, slot, araw, slope, turn, first); });
}
template <class T> void embedding_mix(const Weights<T>& w, const T* raw, T* x, T* mixed, T* kept, T* y, int rows, cudaStream_t stream) {
  const Mixing<T> enter{y ? Mixers<T>(w, w.layers[0].mix_in) : Mixers<T>(), y};
  over_atoms(embedding_mix_kernel<T>, w, std::max((w.C + 3) * w.F, enter.numbers(w)), rows, stream, Mixers<T>(w, w.embedding_mix), enter, w.embedding_norm, w.gate[0], w.gate[1], raw, x, mixed, kept);
}

#define MFMD_INSTANTIATE(T)                                                                                             \
  template void embedding_gather<T>(const Weights<T>&, const Pairs<T>&, const int*, T*, int, cudaStream_t);             \
  template void embedding_gather_reverse<T>(const Weights<T>&, const Pairs<T>&, const int*, const T*, T*, T*, bool, int, cudaStream_t); \
  template void embedding_mix<T>(const Weights<T>&, const T*, T*, T*, T*, T*, int, cudaStream_t);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace cuda
}  // namespace mfmd
