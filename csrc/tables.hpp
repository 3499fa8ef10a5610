// Radial functions as tables: quintic Hermite in log d, value and slope from the same polynomial.
#pragma once

#include <vector>

#include "kernels/basis.hpp"
#include "kernels/tensor.hpp"

namespace mfmd {

constexpr double kFirstKnot = 0.5;  // Å; closer atoms are refused
constexpr double kTableError = 1e-6;  // of a table's slope, relative to the largest slope of its functions, measured between knots

// Quintic Hermite polynomials on [0, 1]: value, first and second derivative at either end, and their derivatives.
MFMD_HD void hermite(double s, double value[6], double slope[6]) {
  const double s2 = s * s, s3 = s2 * s, s4 = s3 * s, s5 = s4 * s;
  value[0] = 1 - 10 * s3 + 15 * s4 - 6 * s5;
  value[1] = s - 6 * s3 + 8 * s4 - 3 * s5;
  value[2] = 0.5 * (s2 - 3 * s3 + 3 * s4 - s5);
  value[3] = 10 * s3 - 15 * s4 + 6 * s5;
  value[4] = -4 * s3 + 7 * s4 - 3 * s5;
  value[5] = 0.5 * (s3 - 2 * s4 + s5);
  slope[0] = -30 * s2 + 60 * s3 - 30 * s4;
  slope[1] = 1 - 18 * s2 + 32 * s3 - 15 * s4;
  slope[2] = 0.5 * (2 * s - 9 * s2 + 12 * s3 - 5 * s4);
  slope[3] = 30 * s2 - 60 * s3 + 30 * s4;
  slope[4] = -12 * s2 + 28 * s3 - 15 * s4;
  slope[5] = 0.5 * (3 * s2 - 8 * s3 + 5 * s4);
}

// One affine map, out[o] = b[o] + sum w[o][i] in[i].
struct Affine {
  const std::vector<double>* w;
  const std::vector<double>* b;
};

// [knots][3][functions]: value and first and second derivative with respect to the knot number, of
// cutoff(d) * maps(radial basis), with SiLU after every map where `silu` (a message layer) or none (the embedding).
std::vector<double> radial_table(int knots, const RadialBasis& basis, const std::vector<Affine>& maps, bool silu);

// Its largest error in slope between knots, relative to the largest slope.
double table_error(const std::vector<double>& table, int knots, const RadialBasis& basis, const std::vector<Affine>& maps, bool silu);

}  // namespace mfmd
