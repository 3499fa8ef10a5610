// What the CPU kernels share: vectors of channels, and the small dense products at the heart of every stage.
// Each kernel file is compiled once per instruction set into a namespace of its own (MFMD_ISA); nothing here may
// have external linkage outside it, so no code for a newer machine can be linked into an older path.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "stages.hpp"
#include "tensor.hpp"

#ifndef MFMD_ISA
#error "compile the kernels through CMakeLists.txt, which names the instruction set"
#endif

namespace mfmd {
namespace MFMD_ISA {

#define MFMD_INLINE __attribute__((always_inline)) inline  // the innermost pieces: a call between them would spill every register

template <class T> struct Simd;
template <> struct Simd<float> {
  typedef float type __attribute__((vector_size(MFMD_VBYTES), may_alias));
  typedef std::int32_t integers __attribute__((vector_size(MFMD_VBYTES), may_alias));
  static constexpr int width = MFMD_VBYTES / sizeof(float);
};
template <> struct Simd<double> {
  typedef double type __attribute__((vector_size(MFMD_VBYTES), may_alias));
  typedef std::int64_t integers __attribute__((vector_size(MFMD_VBYTES), may_alias));
  static constexpr int width = MFMD_VBYTES / sizeof(double);
};
template <class T> using Vec = typename Simd<T>::type;

template <class T> MFMD_INLINE Vec<T>& at(T* p) { return *reinterpret_cast<Vec<T>*>(p); }
template <class T> MFMD_INLINE const Vec<T>& at(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
// Its sum, by halves.
template <class V, std::size_t... K> MFMD_INLINE auto folded(const V& v, std::index_sequence<K...>) {
  return __builtin_shufflevector(v, v, K...) + __builtin_shufflevector(v, v, (K + sizeof...(K))...);
}
template <class T, int WIDTH, class V> MFMD_INLINE T total_of(const V& v) {
  if constexpr (WIDTH == 2) return v[0] + v[1];
  else return total_of<T, WIDTH / 2>(folded(v, std::make_index_sequence<WIDTH / 2>{}));
}
template <class T> MFMD_INLINE T total(const Vec<T>& v) { return total_of<T, Simd<T>::width>(v); }

// Where a row of features [F / 16][C][16] keeps channel f of component 0; the other components follow at steps of 16.
inline std::size_t place(int C, int f) { return static_cast<std::size_t>(f / kSlab) * C * kSlab + f % kSlab; }

// exp of a vector, to rounding: x = n log 2 + r, a Taylor polynomial in r, n into the exponent's bits.
template <class T> inline Vec<T> exponential(Vec<T> x) {
  using Integers = typename Simd<T>::integers;
  constexpr bool single = sizeof(T) == 4;
  constexpr int bits = single ? 23 : 52, bias = single ? 127 : 1023, degree = single ? 7 : 13;
  const T limit = single ? T(87) : T(708), shift = single ? T(12582912) : T(6755399441055744);  // 1.5 * 2^bits rounds to a whole number
  x = x > limit ? Vec<T>{} + limit : x;
  x = x < -limit ? Vec<T>{} - limit : x;
  const Vec<T> n = (x * T(1.4426950408889634) + shift) - shift;
  const Vec<T> r = single ? (x - n * T(0.693359375)) + n * T(2.12194440e-4) : (x - n * T(0.6931471803691238)) - n * T(1.9082149292705877e-10);
  Vec<T> sum = Vec<T>{} + T(1);
  for (int k = degree; k >= 1; --k) sum = sum * r * (T(1) / T(k)) + T(1);
  const Integers power = (__builtin_convertvector(n, Integers) + bias) << bits;
  return sum * reinterpret_cast<const Vec<T>&>(power);
}

// value = silu(x) and its slope for n numbers, a multiple of the width; either may be x itself, slope may be null.
template <class T> inline void silu(const T* x, int n, T* value, T* slope) {
  for (int k = 0; k < n; k += Simd<T>::width) {
    const Vec<T> v = at(x + k), s = T(1) / (T(1) + exponential<T>(-v));
    at(value + k) = v * s;
    if (slope) at(slope + k) = s * (T(1) + v * (T(1) - s));
  }
}

// `rows` rows times w[in][out]; row r of x is at x[r], of y at y[r], in runs of 16 channels `x_step` and `y_step` apart.
// ADD accumulates into y.
template <class T, int ROWS, int COLS, bool ADD>
inline void tile(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int in, int out, int column) {
  constexpr int W = Simd<T>::width;
  Vec<T> sum[ROWS][COLS];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLS; ++c) {
      if (b) sum[r][c] = at(b + column + c * W);
      else sum[r][c] = Vec<T>{};
    }
  const T* row = w + column;
  for (int k0 = 0; k0 < in; k0 += kSlab) {
    const int n = in - k0 < kSlab ? in - k0 : kSlab;
    const std::ptrdiff_t x0 = static_cast<std::ptrdiff_t>(k0 / kSlab) * x_step;
    for (int k = 0; k < n; ++k, row += out)
      for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLS; ++c) sum[r][c] += x[r][x0 + k] * at(row + c * W);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLS; ++c) {
      T* to = y[r] + static_cast<std::ptrdiff_t>((column + c * W) / kSlab) * y_step + (column + c * W) % kSlab;
      if (ADD) at(to) += sum[r][c];
      else at(to) = sum[r][c];
    }
}
template <class T, int ROWS, bool ADD>
inline void strip(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int in, int out) {
  constexpr int W = Simd<T>::width, WIDE = MFMD_VBYTES == 64 ? 4 : 2;
  int column = 0;
  for (; column + WIDE * W <= out; column += WIDE * W) tile<T, ROWS, WIDE, ADD>(x, x_step, w, b, y, y_step, in, out, column);
  for (; column + W <= out; column += W) tile<T, ROWS, 1, ADD>(x, x_step, w, b, y, y_step, in, out, column);
}
template <class T, bool ADD = false>
inline void dense(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int rows, int in, int out) {
  int r = 0;
  for (; r + 6 <= rows; r += 6) strip<T, 6, ADD>(x + r, x_step, w, b, y + r, y_step, in, out);
  for (; r + 3 <= rows; r += 3) strip<T, 3, ADD>(x + r, x_step, w, b, y + r, y_step, in, out);
  for (; r < rows; ++r) strip<T, 1, ADD>(x + r, x_step, w, b, y + r, y_step, in, out);
}
// Rows that lie one behind the other.
template <class T> inline void dense(const T* x, const Dense<T>& d, T* y, int rows) {
  const T* xs[64] = {};
  T* ys[64] = {};
  for (int r = 0; r < rows; ++r) xs[r] = x + static_cast<std::size_t>(r) * d.in, ys[r] = y + static_cast<std::size_t>(r) * d.out;
  dense<T>(xs, kSlab, d.w, d.b, ys, kSlab, rows, d.in, d.out);
}
// The same in sums of 32, which are added up: in single precision a fifth of the error of one long sum, where energies come of it.
template <class T> inline void dense_in_parts(const T* x, const Dense<T>& d, T* y, int rows) {
  constexpr int kPart = 2 * kSlab;
  const T* xs[64] = {};
  T* ys[64] = {};
  for (int r = 0; r < rows; ++r) xs[r] = x + static_cast<std::size_t>(r) * d.in, ys[r] = y + static_cast<std::size_t>(r) * d.out;
  for (int k = 0; k < d.in; k += kPart) {
    const T* w = d.w + static_cast<std::size_t>(k) * d.out;
    const int in = d.in - k < kPart ? d.in - k : kPart;
    if (k == 0) dense<T>(xs, kSlab, w, d.b, ys, kSlab, rows, in, d.out);
    else dense<T, true>(xs, kSlab, w, nullptr, ys, kSlab, rows, in, d.out);
    for (int r = 0; r < rows; ++r) xs[r] += kPart;
  }
}
template <class T> inline void dense_reverse(const T* ay, const Dense<T>& d, T* ax, int rows) {
  const T* ys[64] = {};
  T* xs[64] = {};
  for (int r = 0; r < rows; ++r) ys[r] = ay + static_cast<std::size_t>(r) * d.out, xs[r] = ax + static_cast<std::size_t>(r) * d.in;
  dense<T>(ys, kSlab, d.wt, nullptr, xs, kSlab, rows, d.out, d.in);
}
// y = x mix[part of the component], for the features of some atoms; REVERSE takes the transposed matrices.
template <class T, bool REVERSE = false, bool ADD = false>
inline void mix(const Weights<T>& w, const Dense<T>* m, const T* x, T* y, int atoms) {
  const T* xs[kAtomBlock * 5] = {};
  T* ys[kAtomBlock * 5] = {};
  for (int part = 0; part < w.R; ++part) {
    int rows = 0;
    for (int a = 0; a < atoms; ++a)
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k, ++rows) {
        xs[rows] = x + static_cast<std::size_t>(a) * w.C * w.F + k * kSlab;
        ys[rows] = y + static_cast<std::size_t>(a) * w.C * w.F + k * kSlab;
      }
    dense<T, ADD>(xs, w.C * kSlab, REVERSE ? m[part].wt : m[part].w, nullptr, ys, w.C * kSlab, rows, w.F, w.F);
  }
}

// Sum of body(k) for k < n, a multiple of 16, in double and in 16 interleaved sums, so that it runs in vectors.
template <class Body> inline double sum_of(int n, const Body& body) {
  double lanes[kSlab] = {};
  for (int k0 = 0; k0 < n; k0 += kSlab)
    for (int k = 0; k < kSlab; ++k) lanes[k] += body(k0 + k);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}
// LayerNorm of one row; statistics in double. normal: [n], the row before weight and bias; returns 1 / sigma.
template <class T> inline T layer_norm(const Norm<T>& p, const T* x, int n, T* normal, T* y) {
  const double mean = sum_of(n, [&](int k) { return static_cast<double>(x[k]); }) / n;
  const double square = sum_of(n, [&](int k) { return (x[k] - mean) * (x[k] - mean); });
  const double inverse = 1.0 / std::sqrt(square / n + 1e-5);
  for (int k = 0; k < n; ++k) {
    normal[k] = static_cast<T>((x[k] - mean) * inverse);
    y[k] = normal[k] * p.weight[k] + p.bias[k];
  }
  return static_cast<T>(inverse);
}
template <class T> inline void layer_norm_reverse(const Norm<T>& p, const T* normal, T inverse, const T* ay, int n, T* ax) {
  const double mean = sum_of(n, [&](int k) { return static_cast<double>(ay[k]) * p.weight[k]; }) / n;
  const double along = sum_of(n, [&](int k) { return static_cast<double>(ay[k]) * p.weight[k] * normal[k]; }) / n;
  for (int k = 0; k < n; ++k)
    ax[k] = static_cast<T>(inverse * (static_cast<double>(ay[k]) * p.weight[k] - mean - along * normal[k]));
}

// body(0), body(1) … body(N - 1), each a compile-time constant: what is indexed by it can live in registers.
template <class Body, std::size_t... K> MFMD_INLINE void each(const Body& body, std::index_sequence<K...>) {
  (body(std::integral_constant<int, static_cast<int>(K)>{}), ...);
}
template <int N, class Body> MFMD_INLINE void each(const Body& body) { each(body, std::make_index_sequence<N>{}); }

// Calls body with the rank as a compile-time constant.
template <int RANK> struct Rank { static constexpr int value = RANK; };
template <class Body> inline void with_rank(int rank, const Body& body) {
  if (rank == 0) body(Rank<0>{});
  else if (rank == 1) body(Rank<1>{});
  else body(Rank<2>{});
}

template <class T> void radial(const Weights<T>&, int, const T*, int, T*, T*, T*);
template <class T> void embedding_gather(const Weights<T>&, const Pairs<T>&, const int*, T*, int, int, T*);
template <class T> void embedding_mix(const Weights<T>&, const T*, T*, T*, T*, int, int, T*);
template <class T> void mixing(const Weights<T>&, int, const T*, T*, int, int, T*);
template <class T> void message(const Weights<T>&, int, const Pairs<T>&, const T*, T*, int, int, T*);
template <class T> void own_message(const Weights<T>&, int, const Pairs<T>&, const T*, T*, T*, int, int, T*);
template <class T> void product(const Weights<T>&, int, const int*, const T*, const T*, const T*, T*, T*, int, int, T*);
template <class T> void readout(const Weights<T>&, const int*, const T*, const Seed<T>*, int, T*, T*, int, int, T*);
template <class T> void product_reverse(const Weights<T>&, int, const int*, const T*, const T*, const T*, const T*, T*, T*, const T*, T*, int, int, T*);
template <class T> void message_reverse(const Weights<T>&, int, const Pairs<T>&, const T*, const T*, T*, double*, int, int, T*);
template <class T> void own_message_reverse(const Weights<T>&, int, const Pairs<T>&, const T*, double*, int, int, T*);
template <class T> void mixing_reverse(const Weights<T>&, int, const T*, const T*, T*, int, int, T*);
template <class T> void embedding_mix_reverse(const Weights<T>&, const T*, const T*, T*, const T*, T*, int, int, T*);
template <class T> void embedding_gather_reverse(const Weights<T>&, const Pairs<T>&, const int*, const T*, double*, double*, int, int, T*);
template <class T> void training_gather(const T*, const T*, const int*, const int*, const int*, T*, int, int, int, int);
template <class T> void training_dot(const T*, const T*, const int*, const int*, T*, int, int, int, int);
template <class T> void training_anticommutator(const T*, const T*, T*, int, int, int, int);
template <class T> void training_normalize(const T*, const T*, const T*, T*, int, int, int, int);
template <class T> void training_silu_second(const T*, const T*, const T*, T*, int, int);
template <class T> void training_embed(const T*, const T*, const T*, const T*, const int*, const int*, const int*, T*, int, int, int, int);
template <class T> void training_embed_weights(const T*, const T*, const T*, const T*, const int*, const int*, T*, int, int, int, int);
template <class T> void training_embed_directions(const T*, const T*, const T*, const T*, const int*, const int*, T*, int, int, int, int);
template <class T> void training_embed_values(const T*, const T*, const T*, const int*, const int*, const int*, T*, T*, int, int, int, int);

}  // namespace MFMD_ISA
}  // namespace mfmd
