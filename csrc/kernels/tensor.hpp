// Component algebra of the 3x3 tensors, shared by the CPU kernels and their CUDA twins.
//
// A tensor is kept as its irreducible parts in an orthonormal basis: component 0 is I, 1-3 are A, 4-8 are S.
// Orthonormal means that the Frobenius norm and every inner product are plain sums over components, so that
// adjoints need no metric. The highest rank kept decides how many there are: rank 0 -> 1, 1 -> 4, 2 -> 9.
#pragma once

#if defined(__CUDACC__)
#define MFMD_HD static __host__ __device__ inline
#else
#define MFMD_HD static inline
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
// Gradient with respect to u of the sum over m of b[m] s_m(u); V is a number or a vector of channels.
template <class T, class V> MFMD_HD void symmetric_gradient(const T u[3], const V b[5], V out[3]) {
  const T x = u[0] * T(kSqrt2), y = u[1] * T(kSqrt2), z = u[2] * T(kSqrt2);
  const V q = b[4] * T(1 / kSqrt3);
  out[0] = y * b[0] + z * b[1] + x * (b[3] - q);
  out[1] = x * b[0] + z * b[2] - y * (b[3] + q);
  out[2] = x * b[1] + y * b[2] + z * (q + q);
}

// V is a number or a vector of channels; T is its element type.
template <int RANK, class T, class V> MFMD_HD void to_matrix(const V* c, V m[3][3]) {
  const V iso = c[0] * T(1 / kSqrt3);
  m[0][0] = m[1][1] = m[2][2] = iso;
  m[0][1] = m[0][2] = m[1][0] = m[1][2] = m[2][0] = m[2][1] = iso * T(0);
  if constexpr (RANK >= 1) {
    const V ax = c[1] * T(1 / kSqrt2), ay = c[2] * T(1 / kSqrt2), az = c[3] * T(1 / kSqrt2);
    m[0][1] -= az; m[0][2] += ay; m[1][2] -= ax;
    m[1][0] += az; m[2][0] -= ay; m[2][1] += ax;
  }
  if constexpr (RANK >= 2) {
    const V xy = c[4] * T(1 / kSqrt2), xz = c[5] * T(1 / kSqrt2), yz = c[6] * T(1 / kSqrt2);
    const V d = c[7] * T(1 / kSqrt2), q = c[8] * T(1 / kSqrt6);
    m[0][1] += xy; m[1][0] += xy; m[0][2] += xz; m[2][0] += xz; m[1][2] += yz; m[2][1] += yz;
    m[0][0] += d - q; m[1][1] -= d + q; m[2][2] += q + q;
  }
}
template <int RANK, class T, class V> MFMD_HD void from_matrix(const V m[3][3], V* c) {
  c[0] = (m[0][0] + m[1][1] + m[2][2]) * T(1 / kSqrt3);
  if constexpr (RANK >= 1) {
    c[1] = (m[2][1] - m[1][2]) * T(1 / kSqrt2);
    c[2] = (m[0][2] - m[2][0]) * T(1 / kSqrt2);
    c[3] = (m[1][0] - m[0][1]) * T(1 / kSqrt2);
  }
  if constexpr (RANK >= 2) {
    c[4] = (m[0][1] + m[1][0]) * T(1 / kSqrt2);
    c[5] = (m[0][2] + m[2][0]) * T(1 / kSqrt2);
    c[6] = (m[1][2] + m[2][1]) * T(1 / kSqrt2);
    c[7] = (m[0][0] - m[1][1]) * T(1 / kSqrt2);
    c[8] = (m[2][2] + m[2][2] - m[0][0] - m[1][1]) * T(1 / kSqrt6);
  }
}

// p = a b + b a, projected on the parts that are kept (Simeon & De Fabritiis 2023, eq. 9: O(3)-equivariant).
// With b transposed it is its own adjoint: <p', {a, b}> = <{p', b^T}, a>.
template <int RANK, class T, class V> MFMD_HD void anticommutator(const V* a, const V* b, V* p) {
  V ma[3][3], mb[3][3], mp[3][3];
  to_matrix<RANK, T>(a, ma);
  to_matrix<RANK, T>(b, mb);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      mp[i][j] = ma[i][0] * mb[0][j] + ma[i][1] * mb[1][j] + ma[i][2] * mb[2][j] +
                 mb[i][0] * ma[0][j] + mb[i][1] * ma[1][j] + mb[i][2] * ma[2][j];
  from_matrix<RANK, T>(mp, p);
}
template <int RANK, class V> MFMD_HD void transpose(V* c) {
  if constexpr (RANK >= 1)
    for (int k = 1; k < 4; ++k) c[k] = -c[k];
}

}  // namespace tensor
}  // namespace mfmd
