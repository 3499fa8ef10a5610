// The maps that training spends its time in. All but three are multilinear, and the set is closed under differentiation (the adjoint of each is one of them
// again), so gradients of forces need no further kernel. Each is written once, for a row of what it gives and a channel, or a vector V of them, and run by
// training.cpp on the CPU and by training.cu on a CUDA device.
//
// Shapes: x, y, a, b, g, h: [atoms][C][F] where not said otherwise, C = R * R components in R parts; weights of pairs: [pairs][R][F].
// Pairs come one of each (i, j) and (j, i); `first`, `neighbor` and `pair` list them in rows of atoms, so that sums are gathered here too: pair is p in the row
// of i, ~p in that of j.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "tensor.hpp"

namespace mfmd {
namespace training {

#if defined(__CUDACC__)
#define MFMD_HD_MEMBER __host__ __device__ inline
#else
#define MFMD_HD_MEMBER inline
#endif

// A number, or as many as there are in a vector. That is copied, since a template argument has lost the attribute that lets a vector stand for numbers in
// memory; a number is not, since nvcc would copy it byte by byte.
template <class V, class T> MFMD_HD V get(const T* p) {
  if constexpr (std::is_same_v<V, T>) {
    return *p;
  } else {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
}
template <class V, class T> MFMD_HD void put(T* p, const V& v) {
  if constexpr (std::is_same_v<V, T>) *p = v;
  else memcpy(p, &v, sizeof v);
}

// Where a row begins.
MFMD_HD std::size_t offset(int row, int length) { return static_cast<std::size_t>(row) * static_cast<std::size_t>(length); }
// A pair as a row of atoms lists it: which, and whether the atom is its second.
struct Listed {
  int p;
  bool turned;
};
MFMD_HD Listed listed(int pair) { return {pair < 0 ? ~pair : pair, pair < 0}; }

// out[a] = sum over pairs of a of w[pair] * y[neighbor].
template <class T> struct Gather {
  const T *w, *y;
  const int *first, *neighbor, *pair;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int a, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    V sum[C] = {};
    for (int q = first[a]; q < first[a + 1]; ++q) {
      const T *weight = w + offset(listed(pair[q]).p, R * F) + f, *from = y + offset(neighbor[q], C * F) + f;
      for (int k = 0; k < C; ++k) sum[k] += get<V>(weight + tensor::part(k) * F) * get<V>(from + k * F);
    }
    for (int k = 0; k < C; ++k) put<V>(out + offset(a, C * F) + k * F + f, sum[k]);
  }
};

// out[p][part] = sum over the part's components of a[i] b[j] + a[j] b[i]; out: [pairs][R][F].
template <class T> struct Dot {
  const T *a, *b;
  const int *i, *j;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int p, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    const std::size_t at_i = offset(i[p], C * F) + f, at_j = offset(j[p], C * F) + f;
    V sum[R] = {};
    for (int k = 0; k < C; ++k)
      sum[tensor::part(k)] += get<V>(a + at_i + k * F) * get<V>(b + at_j + k * F) + get<V>(a + at_j + k * F) * get<V>(b + at_i + k * F);
    for (int part = 0; part < R; ++part) put<V>(out + offset(p, R * F) + part * F + f, sum[part]);
  }
};

// out = a b + b a for every atom and channel, of a transposed where bit 0 of `turned` is set, of b where bit 1 is.
template <class T> struct Anticommutator {
  const T *a, *b;
  T* out;
  int turned, F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int n, int f) const {
    constexpr int C = tensor::components(RANK);
    const std::size_t here = offset(n, C * F) + f;
    V va[C], vb[C], p[C];
    for (int k = 0; k < C; ++k) va[k] = get<V>(a + here + k * F), vb[k] = get<V>(b + here + k * F);
    if (turned & 1) tensor::transpose<RANK>(va);
    if (turned & 2) tensor::transpose<RANK>(vb);
    tensor::anticommutator<RANK, T>(va, vb, p);
    for (int k = 0; k < C; ++k) put<V>(out + here + k * F, p[k]);
  }
};

// Each part of x times a number: out[k] = v[part of k] x[k]; v: [atoms][R][F].
template <class T> struct Scale {
  const T *v, *x;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int n, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    for (int k = 0; k < C; ++k)
      put<V>(out + offset(n, C * F) + k * F + f, get<V>(v + offset(n, R * F) + tensor::part(k) * F + f) * get<V>(x + offset(n, C * F) + k * F + f));
  }
};

// Of each part the sum of a b over its components; out: [atoms][R][F].
template <class T> struct Dots {
  const T *a, *b;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int n, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    V sum[R] = {};
    for (int k = 0; k < C; ++k) sum[tensor::part(k)] += get<V>(a + offset(n, C * F) + k * F + f) * get<V>(b + offset(n, C * F) + k * F + f);
    for (int part = 0; part < R; ++part) put<V>(out + offset(n, R * F) + part * F + f, sum[part]);
  }
};

// y = x / (|x|^2 + 1) over the components. With g, the gradient J g (J is symmetric); with h too, that of <h, J g> in x.
template <class T> struct Normalize {
  const T *x, *g, *h;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int n, int f) const {
    constexpr int C = tensor::components(RANK);
    const std::size_t here = offset(n, C * F) + f;
    V q = V{} + T(1), gx{}, hx{}, gh{};
    for (int k = 0; k < C; ++k) {
      const V at_k = get<V>(x + here + k * F);
      q += at_k * at_k;
      if (g) gx += get<V>(g + here + k * F) * at_k;
      if (h) hx += get<V>(h + here + k * F) * at_k, gh += get<V>(g + here + k * F) * get<V>(h + here + k * F);
    }
    const V once = T(1) / q, twice = T(-2) * once * once;
    const V along = h ? twice * gh - T(4) * twice * once * gx * hx : twice * gx;
    for (int k = 0; k < C; ++k) {
      const V at_k = get<V>(x + here + k * F);
      V to = once * at_k;
      if (h) to = along * at_k + twice * (gx * get<V>(h + here + k * F) + hx * get<V>(g + here + k * F));
      else if (g) to = once * get<V>(g + here + k * F) + along * at_k;
      put<V>(out + here + k * F, to);
    }
  }
};

// Functions of the distance between knots, whose values and slopes are rows of a table, [2 knots][F], F being all numbers of a row here. With c the four
// numbers of Hermite's cubic of each pair,
//   Q(c, t, g) = sum over pairs p, m, f of c[p, m] t[2 knot(p) + m, f] g[p, f].
// These are its gradients in g (what is between the knots), in c, and in t; pairs in order of their knots: those of knot k are pair[first[k]], …
template <class T> struct Interpolate {
  const T *c, *t;
  const int* knot;
  T* out;
  int F;
  template <int, class V> MFMD_HD_MEMBER void row(int p, int f) const {
    const T *from = t + offset(2 * knot[p], F) + f, *own = c + offset(p, 4);
    V sum{};
    for (int m = 0; m < 4; ++m) sum += own[m] * get<V>(from + offset(m, F));
    put<V>(out + offset(p, F) + f, sum);
  }
};
template <class T> struct InterpolateCoefficients {
  const T *t, *g;
  const int* knot;
  T* out;
  int F;
  MFMD_HD_MEMBER static constexpr int sums(int) { return 4; }
  template <int, class V> MFMD_HD_MEMBER void add(int p, int f, V* sum) const {
    const T* from = t + offset(2 * knot[p], F) + f;
    for (int m = 0; m < 4; ++m) sum[m] += get<V>(from + offset(m, F)) * get<V>(g + offset(p, F) + f);
  }
};
// A row is a knot: it has the pairs that follow it, and those that follow the one before.
template <class T> struct InterpolateTable {
  const T *c, *g;
  const int *first, *pair;
  T* out;
  int F;
  template <int, class V> MFMD_HD_MEMBER void row(int k, int f) const {
    V value{}, slope{};
    for (int side = k > 0 ? 0 : 1; side < 2; ++side)
      for (int q = first[k - 1 + side]; q < first[k + side]; ++q) {
        const T* own = c + offset(pair[q], 4) + (side ? 0 : 2);
        const V from = get<V>(g + offset(pair[q], F) + f);
        value += own[0] * from, slope += own[1] * from;
      }
    put<V>(out + offset(2 * k, F) + f, value), put<V>(out + offset(2 * k + 1, F) + f, slope);
  }
};

// The embedding's sum. With c over components, f over channels, and s = -1 for the components of A (directions turn round with the pair), else 1,
//   Q(w, d, a, b, g) = sum over pairs p, c, f of w[p, part(c), f] d[p, c] ((a_i + b_j)[f] g_i[c, f] + s (a_j + b_i)[f] g_j[c, f]).
// Below are its gradients in g (the sum itself), in w, in d, and in a and b. d: [pairs][C], a, b: [atoms][F].
template <class T> struct Embed {
  const T *w, *d, *a, *b;
  const int *first, *neighbor, *pair;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int i, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    const V own = get<V>(a + offset(i, F) + f);
    V sum[C] = {};
    for (int q = first[i]; q < first[i + 1]; ++q) {
      const Listed one = listed(pair[q]);
      const V both = own + get<V>(b + offset(neighbor[q], F) + f);
      const T* direction = d + offset(one.p, C);
      V weight[R];
      for (int part = 0; part < R; ++part) weight[part] = get<V>(w + offset(one.p, R * F) + part * F + f) * (part == 1 && one.turned ? -both : both);
      for (int k = 0; k < C; ++k) sum[k] += direction[k] * weight[tensor::part(k)];
    }
    for (int k = 0; k < C; ++k) put<V>(out + offset(i, C * F) + k * F + f, sum[k]);
  }
};
template <class T> struct EmbedWeights {
  const T *d, *a, *b, *g;
  const int *i, *j;
  T* out;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int p, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    const V there = get<V>(a + offset(i[p], F) + f) + get<V>(b + offset(j[p], F) + f), back = get<V>(a + offset(j[p], F) + f) + get<V>(b + offset(i[p], F) + f);
    V gi[R] = {}, gj[R] = {};
    for (int k = 0; k < C; ++k) {
      const T along = d[offset(p, C) + k];
      gi[tensor::part(k)] += along * get<V>(g + offset(i[p], C * F) + k * F + f), gj[tensor::part(k)] += along * get<V>(g + offset(j[p], C * F) + k * F + f);
    }
    for (int part = 0; part < R; ++part) put<V>(out + offset(p, R * F) + part * F + f, there * gi[part] + (part == 1 ? -back : back) * gj[part]);
  }
};
template <class T> struct EmbedDirections {
  const T *w, *a, *b, *g;
  const int *i, *j;
  T* out;
  int F;
  MFMD_HD_MEMBER static constexpr int sums(int rank) { return tensor::components(rank); }
  template <int RANK, class V> MFMD_HD_MEMBER void add(int p, int f, V* sum) const {
    constexpr int R = RANK + 1, C = R * R;
    const V there = get<V>(a + offset(i[p], F) + f) + get<V>(b + offset(j[p], F) + f), back = get<V>(a + offset(j[p], F) + f) + get<V>(b + offset(i[p], F) + f);
    V to[R], from[R];
    for (int part = 0; part < R; ++part) {
      const V weight = get<V>(w + offset(p, R * F) + part * F + f);
      to[part] = weight * there, from[part] = weight * (part == 1 ? -back : back);
    }
    for (int k = 0; k < C; ++k)
      sum[k] += to[tensor::part(k)] * get<V>(g + offset(i[p], C * F) + k * F + f) + from[tensor::part(k)] * get<V>(g + offset(j[p], C * F) + k * F + f);
  }
};
template <class T> struct EmbedValues {
  const T *w, *d, *g;
  const int *first, *neighbor, *pair;
  T *to_a, *to_b;
  int F;
  template <int RANK, class V> MFMD_HD_MEMBER void row(int i, int f) const {
    constexpr int R = RANK + 1, C = R * R;
    V here[C], sum_a{}, sum_b{};
    for (int k = 0; k < C; ++k) here[k] = get<V>(g + offset(i, C * F) + k * F + f);
    for (int q = first[i]; q < first[i + 1]; ++q) {
      const Listed one = listed(pair[q]);
      const T *direction = d + offset(one.p, C), *there = g + offset(neighbor[q], C * F) + f;
      V own[R] = {}, far[R] = {};
      for (int k = 0; k < C; ++k) own[tensor::part(k)] += direction[k] * here[k], far[tensor::part(k)] += direction[k] * get<V>(there + k * F);
      for (int part = 0; part < R; ++part) {
        const V weight = get<V>(w + offset(one.p, R * F) + part * F + f);
        sum_a += weight * (part == 1 && one.turned ? -own[part] : own[part]);
        sum_b += weight * (part == 1 && !one.turned ? -far[part] : far[part]);
      }
    }
    put<V>(to_a + offset(i, F) + f, sum_a), put<V>(to_b + offset(i, F) + f, sum_b);
  }
};

// out = g h silu''(x), n numbers.
template <class T> struct SiluSecond {
  const T *x, *g, *h;
  T* out;
};
// out[k] = x[k] m[part of k] for every component; m: [R][F][F].
template <class T> struct Mix {
  const T *x, *m;
  T* out;
  int F;
};
// The gradient of <g, Mix> in m, of which a row is (part, channel of x).
template <class T> struct MixWeights {
  const T *x, *g;
  T* out;
  int atoms, F;
};

}  // namespace training

// Rows [begin, end); on a device all of them, from 0 on, in order of its stream.
struct Range {
  int begin, end;
  void* stream;
};

// Each of them on the CPU, or on the CUDA device that is current; null: not there.
template <class T> struct TrainingMaps {
  template <class Map> using Rows = void (*)(const Map&, int R, const Range&);
  Rows<training::Gather<T>> gather;
  Rows<training::Dot<T>> dot;
  Rows<training::Anticommutator<T>> anticommutator;
  Rows<training::Scale<T>> scale;
  Rows<training::Dots<T>> dots;
  Rows<training::Normalize<T>> normalize;
  Rows<training::Interpolate<T>> interpolate;
  Rows<training::InterpolateCoefficients<T>> interpolate_coefficients;
  Rows<training::InterpolateTable<T>> interpolate_table;
  Rows<training::Embed<T>> embed;
  Rows<training::EmbedWeights<T>> embed_weights;
  Rows<training::EmbedDirections<T>> embed_directions;
  Rows<training::EmbedValues<T>> embed_values;
  Rows<training::SiluSecond<T>> silu_second;
  Rows<training::Mix<T>> mix;
  Rows<training::MixWeights<T>> mix_weights;
};
// Of a device; null where the CUDA engine is not compiled.
template <class T> const TrainingMaps<T>* training_maps_on_device();

}  // namespace mfmd
