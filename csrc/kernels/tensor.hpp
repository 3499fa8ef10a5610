// Component algebra of the 3x3 tensors, shared by the CPU kernels and their CUDA twins.
//
// A tensor is kept as its irreducible parts in an orthonormal basis: component 0 is I, 1-3 are A, 4-8 are S.
// Orthonormal means that the Frobenius norm and every inner product are plain sums over components, so that
// adjoints need no metric. The highest rank kept decides how many there are: rank 0 -> 1, 1 -> 4, 2 -> 9.
#pragma once

#if defined(__CUDACC__)
#define MFMD_HD static __host__ __device__ inline
#else
#define MFMD_HD static __attribute__((always_inline)) inline  // else arrays of vectors go through memory
#endif

namespace mfmd {
namespace tensor {

constexpr double kSqrt2 = 1.4142135623730951;
constexpr double kSqrt3 = 1.7320508075688772;
constexpr double kSqrt6 = 2.449489742783178;

MFMD_HD constexpr int components(int rank) { return (rank + 1) * (rank + 1); }
MFMD_HD constexpr int first(int part) { return part * part; }       // of part 0 (I), 1 (A), 2 (S)
MFMD_HD constexpr int part(int component) { return component == 0 ? 0 : component < 4 ? 1 : 2; }
MFMD_HD constexpr int size(int part) { return 2 * part + 1; }

// Components of the matrix u u^T - 1/3, for |u| = 1.
template <class T> MFMD_HD void symmetric(const T u[3], T s[5]) {
  const T x = u[0], y = u[1], z = u[2];
  s[0] = T(kSqrt2) * x * y;
  s[1] = T(kSqrt2) * x * z;
  s[2] = T(kSqrt2) * y * z;
  s[3] = (x * x - y * y) / T(kSqrt2);
  s[4] = (2 * z * z - x * x - y * y) / T(kSqrt6);
}
// The sum over m of b[m] s_m(u) itself, and in `out` its gradient but for a multiple of u, in which it is shorter. w: u times the root of 2.
template <class T, class V> MFMD_HD V symmetric_turn(const T w[3], const V b[5], V out[3]) {
  const T x = w[0], y = w[1], z = w[2];
  out[0] = y * b[0] + z * b[1] + x * b[3];
  out[1] = x * b[0] + z * b[2] - y * b[3];
  out[2] = x * b[1] + y * b[2] + (T(kSqrt3) * z) * b[4];
  return T(0.5 / kSqrt2) * (x * out[0] + y * out[1] + z * out[2]) - T(1 / kSqrt6) * b[4];
}

// sqrt(2) times a matrix: its diagonal, sums of two of its numbers, what is beside it, and the vector of its antisymmetric part. A sum, and what is beside,
// are at the axis that they are without. V is a number or a vector of channels; T is its element type.
template <class V> struct Matrix {
  V diagonal[3], sum[3], beside[3], axial[3];
};
template <int RANK, class T, class V> MFMD_HD Matrix<V> to_matrix(const V* c) {
  Matrix<V> m;
  m.diagonal[0] = m.diagonal[1] = m.diagonal[2] = c[0] * T(kSqrt2 / kSqrt3);
  if constexpr (RANK >= 1)
    for (int i = 0; i < 3; ++i) m.axial[i] = c[1 + i];
  if constexpr (RANK >= 2) {
    const V q = c[8] * T(1 / kSqrt3), across = m.diagonal[0] - q;
    m.diagonal[0] = across + c[7], m.diagonal[1] = across - c[7], m.diagonal[2] += q + q;
    for (int i = 0; i < 3; ++i) m.beside[i] = c[6 - i];
  }
  for (int i = 0; i < 3; ++i) m.sum[i] = m.diagonal[(i + 1) % 3] + m.diagonal[(i + 2) % 3];
  return m;
}

// p = a b + b a, projected on the parts that are kept (Simeon & De Fabritiis 2023, eq. 9: O(3)-equivariant).
// With b transposed it is its own adjoint: <p', {a, b}> = <{p', b^T}, a>.
// Of symmetric matrices and axial vectors: S [v] + [v] S = [(tr S - S) v], and [u] [v] + [v] [u] = u v^T + v u^T - 2 u v.
template <int RANK, class T, class V> MFMD_HD void anticommutator(const V* of_a, const V* of_b, V* p) {
  const Matrix<V> a = to_matrix<RANK, T>(of_a), b = to_matrix<RANK, T>(of_b);
  V diagonal[3], shared[3];
  for (int i = 0; i < 3; ++i) {
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    diagonal[i] = a.diagonal[i] * b.diagonal[i];
    if constexpr (RANK == 1) shared[i] = -(a.axial[i] * b.axial[i]);
    if constexpr (RANK >= 2) shared[i] = a.beside[i] * b.beside[i] - a.axial[i] * b.axial[i];
    if constexpr (RANK >= 1) {
      V axial = a.sum[i] * b.axial[i] + b.sum[i] * a.axial[i];
      if constexpr (RANK >= 2) axial -= a.beside[k] * b.axial[j] + a.beside[j] * b.axial[k] + b.beside[k] * a.axial[j] + b.beside[j] * a.axial[k];
      p[1 + i] = axial * T(1 / kSqrt2);
    }
    if constexpr (RANK >= 2)
      p[6 - i] = (a.sum[i] * b.beside[i] + b.sum[i] * a.beside[i] + a.beside[j] * b.beside[k] + a.beside[k] * b.beside[j] + a.axial[j] * b.axial[k] +
                  a.axial[k] * b.axial[j]) * T(1 / kSqrt2);
  }
  if constexpr (RANK >= 1)
    for (int i = 0; i < 3; ++i) diagonal[i] += shared[(i + 1) % 3] + shared[(i + 2) % 3];
  const V across = diagonal[0] + diagonal[1];
  p[0] = (across + diagonal[2]) * T(1 / kSqrt3);
  if constexpr (RANK >= 2) {
    p[7] = (diagonal[0] - diagonal[1]) * T(1 / kSqrt2);
    p[8] = (diagonal[2] + diagonal[2] - across) * T(1 / kSqrt6);
  }
}
template <int RANK, class V> MFMD_HD void transpose(V* c) {
  if constexpr (RANK >= 1)
    for (int k = 1; k < 4; ++k) c[k] = -c[k];
}

}  // namespace tensor
}  // namespace mfmd
