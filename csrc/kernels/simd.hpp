// What the CPU kernels share: vectors of channels, and the small dense products at the heart of every stage.
// Each kernel file is compiled once per instruction set into a namespace of its own (MFMD_ISA); nothing here may
// have external linkage outside it, so no code for a newer machine can be linked into an older path.
#pragma once

#include <algorithm>
#include <array>
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
  typedef float piece __attribute__((vector_size(MFMD_VBYTES / 2), may_alias));  // as many as a vector of double has
  static constexpr int width = MFMD_VBYTES / sizeof(float);
};
template <> struct Simd<double> {
  typedef double type __attribute__((vector_size(MFMD_VBYTES), may_alias));
  typedef std::int64_t integers __attribute__((vector_size(MFMD_VBYTES), may_alias));
  typedef type piece;
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

// body(0), body(1) … body(N - 1), each a compile-time constant: what is indexed by it can live in registers.
template <class Body, std::size_t... K> MFMD_INLINE void each(const Body& body, std::index_sequence<K...>) {
  (body(std::integral_constant<int, static_cast<int>(K)>{}), ...);
}
template <int N, class Body> MFMD_INLINE void each(const Body& body) { each(body, std::make_index_sequence<N>{}); }

template <class T> using Piece = typename Simd<T>::piece;
template <class T> MFMD_INLINE Piece<T>& piece(T* p) { return *reinterpret_cast<Piece<T>*>(p); }
template <class T> MFMD_INLINE const Piece<T>& piece(const T* p) { return *reinterpret_cast<const Piece<T>*>(p); }
template <class V> MFMD_INLINE Vec<double> wide(const V& v) { return __builtin_convertvector(v, Vec<double>); }

// N sums over k < n, a multiple of 16, in double: body(k, sum) adds what there is at the piece that begins with k.
template <int N, class Body> MFMD_INLINE std::array<double, N> sums_of(int n, const Body& body) {
  constexpr int W = Simd<double>::width, lanes = kSlab / W;
  Vec<double> sum[lanes][N] = {};
  for (int k = 0; k < n; k += kSlab) each<lanes>([&](auto q) __attribute__((always_inline)) { body(k + q * W, sum[q]); });
  std::array<double, N> totals;
  each<N>([&](auto which) __attribute__((always_inline)) {
    each<lanes - 1>([&](auto q) __attribute__((always_inline)) { sum[0][which] += sum[q + 1][which]; });
    totals[which] = total<double>(sum[0][which]);
  });
  return totals;
}
// LayerNorm of one row; statistics in double, of the distance from the row's first number: nothing cancels where all are nearly alike.
// normal: [n], the row before weight and bias; returns 1 / sigma.
template <class T> inline T layer_norm(const Norm<T>& p, const T* x, int n, T* normal, T* y) {
  const double origin = x[0];
  const auto [sum, square] = sums_of<2>(n, [&](int k, Vec<double>* sums) __attribute__((always_inline)) {
    const Vec<double> d = wide(piece(x + k)) - origin;
    sums[0] += d, sums[1] += d * d;
  });
  const double mean = origin + sum / n, inverse = 1.0 / std::sqrt((square - sum * (sum / n)) / n + 1e-5);
  for (int k = 0; k < n; k += Simd<double>::width) {
    piece(normal + k) = __builtin_convertvector((wide(piece(x + k)) - mean) * inverse, Piece<T>);
    piece(y + k) = piece(normal + k) * piece(p.weight + k) + piece(p.bias + k);
  }
  return static_cast<T>(inverse);
}
template <class T> inline void layer_norm_reverse(const Norm<T>& p, const T* normal, T inverse, const T* ay, int n, T* ax) {
  const auto [sum, product] = sums_of<2>(n, [&](int k, Vec<double>* sums) __attribute__((always_inline)) {
    const Piece<T> a = piece(ay + k) * piece(p.weight + k);
    sums[0] += wide(a), sums[1] += wide(a * piece(normal + k));
  });
  const T mean = static_cast<T>(sum / n), along = static_cast<T>(product / n);
  for (int k = 0; k < n; k += Simd<T>::width) at(ax + k) = inverse * (at(ay + k) * at(p.weight + k) - mean - along * at(normal + k));
}

// Where a row of features [F / 16][C][16] keeps channel f of component 0; the other components follow at steps of 16.
inline std::size_t place(int C, int f) { return static_cast<std::size_t>(f / kSlab) * C * kSlab + f % kSlab; }

template <class T, int DEGREE> struct Taylor {  // of exp
  T of[DEGREE + 1] = {};
  constexpr Taylor() {
    double factorial = 1.0;
    for (int k = 0; k <= DEGREE; factorial *= ++k) of[k] = static_cast<T>(1.0 / factorial);
  }
};
// exp of a vector, to rounding: x = n log 2 + r, a Taylor polynomial in r, n added to the exponent's bits.
template <class T> MFMD_INLINE Vec<T> exponential(Vec<T> x) {
  using Integers = typename Simd<T>::integers;
  constexpr bool single = sizeof(T) == 4;
  constexpr int bits = single ? 23 : 52, degree = single ? 7 : 13;
  constexpr Taylor<T, degree> taylor;
  const T limit = single ? T(87) : T(708), shift = single ? T(12582912) : T(6755399441055744);  // 1.5 * 2^bits rounds to a whole number
  x = x > limit ? Vec<T>{} + limit : x;
  x = x < -limit ? Vec<T>{} - limit : x;
  const Vec<T> shifted = x * T(1.4426950408889634) + shift, n = shifted - shift;
  const Vec<T> r = single ? (x - n * T(0.693359375)) + n * T(2.12194440e-4) : (x - n * T(0.6931471803691238)) - n * T(1.9082149292705877e-10);
  Vec<T> sum = Vec<T>{} + taylor.of[degree];
  for (int k = degree; k--;) sum = sum * r + taylor.of[k];
  const Integers power = reinterpret_cast<const Integers&>(sum) + (reinterpret_cast<const Integers&>(shifted) << bits);
  return reinterpret_cast<const Vec<T>&>(power);
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
  const auto all = [](const auto& body) __attribute__((always_inline)) {  // unrolled, so that the sums are in registers alone
    each<ROWS>([&](auto r) __attribute__((always_inline)) { each<COLS>([&](auto c) __attribute__((always_inline)) { body(r, c); }); });
  };
  all([&](auto r, auto c) __attribute__((always_inline)) {
    if (b) sum[r][c] = at(b + column + c * W);
    else sum[r][c] = Vec<T>{};
  });
  const T* row = w + column;
  for (int k0 = 0; k0 < in; k0 += kSlab) {
    const int n = in - k0 < kSlab ? in - k0 : kSlab;
    const std::ptrdiff_t x0 = static_cast<std::ptrdiff_t>(k0 / kSlab) * x_step;
    for (int k = 0; k < n; ++k, row += out) all([&](auto r, auto c) __attribute__((always_inline)) { sum[r][c] += x[r][x0 + k] * at(row + c * W); });
  }
  all([&](auto r, auto c) __attribute__((always_inline)) {
    T* to = y[r] + static_cast<std::ptrdiff_t>((column + c * W) / kSlab) * y_step + (column + c * W) % kSlab;
    if constexpr (ADD) at(to) += sum[r][c];
    else at(to) = sum[r][c];
  });
}
// As many columns at a time as the registers hold, with six rows or, of one column, twelve. The last two tiles share evenly what is left where
// one alone would have too few sums to hide how long each takes.
constexpr int kSums = 10;
template <int COLS> constexpr int kTileRows = COLS == 1 ? 12 : 6;
template <class T, int COLS, bool ADD, int ROWS = kTileRows<COLS>>
inline void tiles(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int rows, int in, int out, int column) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tiles<T, COLS, ADD, ROWS - 1>(x, x_step, w, b, y, y_step, rows, in, out, column);
  tile<T, ROWS, COLS, ADD>(x, x_step, w, b, y, y_step, in, out, column);
}
template <class T, bool ADD, int COLS>
inline int columns(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int rows, int in, int out, int column) {
  constexpr int most = kTileRows<COLS>, W = Simd<T>::width;
  for (; column + COLS * W <= out; column += COLS * W)
    for (int r = 0, n; r < rows; r += n) {
      const int left = rows - r;
      n = left > most && (left - most) * COLS < kSums ? (left + 1) / 2 : std::min(left, most);
      tiles<T, COLS, ADD>(x + r, x_step, w, b, y + r, y_step, n, in, out, column);
    }
  return column;
}
template <class T, bool ADD = false>
__attribute__((noinline)) void dense(const T* const* x, int x_step, const T* w, const T* b, T* const* y, int y_step, int rows, int in, int out) {
  int column = 0;
  if constexpr (MFMD_VBYTES == 64) column = columns<T, ADD, 4>(x, x_step, w, b, y, y_step, rows, in, out, column);
  column = columns<T, ADD, 2>(x, x_step, w, b, y, y_step, rows, in, out, column);
  columns<T, ADD, 1>(x, x_step, w, b, y, y_step, rows, in, out, column);
}
// Rows that lie one behind the other.
constexpr int kMostRows = kPairBlock;
static_assert(kAtomBlock <= kMostRows);
template <class T> inline void dense(const T* x, const Dense<T>& d, T* y, int rows) {
  const T* xs[kMostRows] = {};
  T* ys[kMostRows] = {};
  for (int r = 0; r < rows; ++r) xs[r] = x + static_cast<std::size_t>(r) * d.in, ys[r] = y + static_cast<std::size_t>(r) * d.out;
  dense<T>(xs, kSlab, d.w, d.b, ys, kSlab, rows, d.in, d.out);
}
// The same in sums of 32, which are added up: in single precision a fifth of the error of one long sum, where energies come of it.
template <class T> inline void dense_in_parts(const T* x, const Dense<T>& d, T* y, int rows) {
  constexpr int kPart = 2 * kSlab;
  const T* xs[kMostRows] = {};
  T* ys[kMostRows] = {};
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
  const T* ys[kMostRows] = {};
  T* xs[kMostRows] = {};
  for (int r = 0; r < rows; ++r) ys[r] = ay + static_cast<std::size_t>(r) * d.out, xs[r] = ax + static_cast<std::size_t>(r) * d.in;
  dense<T>(ys, kSlab, d.wt, nullptr, xs, kSlab, rows, d.out, d.in);
}

// Calls body with the rank as a compile-time constant.
template <int RANK> struct Rank { static constexpr int value = RANK; };
template <class Body> inline void with_rank(int rank, const Body& body) {
  if (rank == 0) body(Rank<0>{});
  else if (rank == 1) body(Rank<1>{});
  else body(Rank<2>{});
}

// y = x mix[part of the component], for the features of some atoms; REVERSE takes the transposed matrices.
template <class T, bool REVERSE = false, bool ADD = false>
inline void mix(const Weights<T>& w, const Dense<T>* m, const T* x, T* y, int atoms) {
  const std::size_t step = static_cast<std::size_t>(w.C * w.F);
  with_rank(w.rank, [&](auto rank) {
    each<decltype(rank)::value + 1>([&](auto part) {
      constexpr int size = tensor::size(part), first = tensor::first(part);
      const T* xs[kAtomBlock * size];
      T* ys[kAtomBlock * size];
      for (int a = 0; a < atoms; ++a)
        for (int k = 0; k < size; ++k) xs[a * size + k] = x + a * step + (first + k) * kSlab, ys[a * size + k] = y + a * step + (first + k) * kSlab;
      dense<T, ADD>(xs, w.C * kSlab, REVERSE ? m[part].wt : m[part].w, nullptr, ys, w.C * kSlab, atoms * size, w.F, w.F);
    });
  });
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
template <class T> const TrainingMaps<T>* training_maps();

}  // namespace MFMD_ISA
}  // namespace mfmd
