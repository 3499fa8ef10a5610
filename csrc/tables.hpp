// Radial functions as tables: quintic Hermite in log d, value and slope from the same polynomial.
#pragma once

#include <vector>

namespace mfmd {

constexpr double kFirstKnot = 0.5;  // Å; closer atoms are refused
constexpr int kKnots = 128;

// One affine map, out[o] = b[o] + sum w[o][i] in[i].
struct Affine {
  const std::vector<double>* w;
  const std::vector<double>* b;
};

// [kKnots][3][functions]: value and first and second derivative with respect to the knot number, of
// cutoff(d) * maps(radial basis), with SiLU after every map where `silu` (a message layer) or none (the embedding).
std::vector<double> radial_table(const std::vector<double>& means, const std::vector<double>& betas, double cutoff,
                                 const std::vector<Affine>& maps, bool silu);

}  // namespace mfmd
