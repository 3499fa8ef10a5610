// Radial functions as tables: a quintic polynomial in every interval of equal steps in 1/d, value and slope of one and the same.
//
// 1/d: short steps where the functions vary fast, and few intervals where the many pairs are, so that what is read of a table stays in the first cache
// (exponential-normal functions, 5 Å: 8 of 57 intervals from 2.2 Å up; in log d 22 of 64, in d 122 of 200, for the same error).
#pragma once

#include <vector>

#include "kernels/basis.hpp"
#include "kernels/tensor.hpp"

namespace mfmd {

constexpr double kFirstKnot = 0.5;  // Å; closer atoms are refused
constexpr double kTableError = 3e-7;  // of a function's slope, relative to the largest slope of all in its table

struct Place {
  int interval;
  double t, rate;  // from -1/2 to 1/2 within the interval, and dt/dd
};
struct Intervals {  // of a table, from the cutoff inwards
  int count;
  double last, per;  // 1/cutoff, and how many a unit of 1/d
  Intervals(int n, double cutoff) : count(n), last(1.0 / cutoff), per(n / (1.0 / kFirstKnot - last)) {}
  double distance(int k, double t) const { return 1.0 / (last + (k + 0.5 + t) / per); }
};
// Of a distance, given its inverse.
MFMD_HD Place place_of(const Intervals& of, double inverse) {
  const double s = of.per * (inverse - of.last);
  const int whole = static_cast<int>(s), k = whole < of.count ? whole : of.count - 1;
  return {k, s - k - 0.5, -of.per * inverse * inverse};
}

// One affine map, out[o] = b[o] + sum w[o][i] in[i].
struct Affine {
  const std::vector<double>* w;
  const std::vector<double>* b;
};

// [intervals][kCoefficients][functions]: coefficients of t^0, t^1 …, of cutoff(d) * maps(radial basis), with SiLU after every map where `silu` (a message
// layer) or none (the embedding). Values and slopes are continuous; slopes are those of the functions at the ends and at two places between.
std::vector<double> radial_table(const Intervals&, const RadialBasis& basis, const std::vector<Affine>& maps, bool silu);

// Its largest error in dvalue/dd, relative to the largest dvalue/dd.
double table_error(const std::vector<double>& table, const Intervals&, const RadialBasis& basis, const std::vector<Affine>& maps, bool silu);

}  // namespace mfmd
