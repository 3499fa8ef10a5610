#include "tables.hpp"

#include <cmath>

#include "kernels/stages.hpp"

namespace mfmd {

namespace {

// cos 54° / (2 cos 18°): with it the slope's error is a Chebyshev polynomial of fifth degree whose outermost zeros are the ends of the interval.
constexpr double kBetween = 0.30901699437494745;
constexpr double kMostError[2] = {0.16245984811645317, 0.42532540417601994};  // where that is largest, on either side

// The functions at `r`, with derivatives with respect to a variable that r runs 1 / `rate` of per unit.
std::vector<Jet> functions_at(double r, double rate, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const Jet d{r, 1.0 / rate};
  std::vector<Jet> in(static_cast<std::size_t>(basis.size)), out;
  evaluate(basis, d, in.data());
  for (const Affine& map : maps) {
    out.assign(map.b->size(), Jet{});
    for (std::size_t o = 0; o < out.size(); ++o) {
      const double* row = map.w->data() + o * in.size();
      Jet sum{(*map.b)[o], 0.0};
      for (std::size_t i = 0; i < in.size(); ++i) {
        sum.v += row[i] * in[i].v;
        sum.d += row[i] * in[i].d;
      }
      out[o] = with_silu ? silu(sum) : sum;
    }
    in = out;
  }
  const Jet cut = envelope(d, basis.cutoff);
  for (Jet& f : out) f = cut * f;
  return out;
}

}  // namespace

std::vector<double> radial_table(const Intervals& intervals, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const auto at = [&](int k, double t) {
    const double r = intervals.distance(k, t);
    return functions_at(r, place_of(intervals, 1.0 / r).rate, basis, maps, with_silu);
  };
  const std::size_t functions = maps.back().b->size();
  std::vector<double> table;
  table.reserve(static_cast<std::size_t>(intervals.count) * kCoefficients * functions);
  constexpr double b2 = kBetween * kBetween;
  std::vector<Jet> low = at(0, -0.5);
  for (int k = 0; k < intervals.count; ++k) {
    const std::vector<Jet> high = at(k, 0.5), below = at(k, -kBetween), above = at(k, kBetween);
    table.resize(table.size() + kCoefficients * functions);
    double* c = &*table.end() - kCoefficients * functions;
    for (std::size_t o = 0; o < functions; ++o) {
      // The slope's odd part, o1 t + o3 t^3, from its values at the two places …
      const double odd_end = high[o].d - low[o].d, odd_between = (above[o].d - below[o].d) / (2.0 * kBetween);
      const double o3 = (odd_end - odd_between) / (0.25 - b2), o1 = odd_end - 0.25 * o3;
      // … and the even part, e0 + e2 t^2 + e4 t^4, from those and the rise from end to end, e0 + e2 / 12 + e4 / 80.
      const double end = 0.5 * (high[o].d + low[o].d), between = 0.5 * (above[o].d + below[o].d), rise = high[o].v - low[o].v;
      const double slant = (end - between) / (0.25 - b2);  // e2 + e4 (1/4 + b^2)
      const double e4 = (rise - end + slant / 6.0) / (1.0 / 80.0 - 1.0 / 16.0 + (0.25 + b2) / 6.0), e2 = slant - e4 * (0.25 + b2);
      const double middle = 0.5 * (high[o].v + low[o].v) - o1 / 8.0 - o3 / 64.0;
      const double of[kCoefficients] = {middle, end - e2 / 4.0 - e4 / 16.0, o1 / 2.0, e2 / 3.0, o3 / 4.0, e4 / 5.0};
      for (std::size_t q = 0; q < kCoefficients; ++q) c[q * functions + o] = of[q];
    }
    low = high;
  }
  return table;
}

double table_error(const std::vector<double>& table, const Intervals& intervals, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const std::size_t n = maps.back().b->size();
  double worst = 0.0, largest = 0.0;
  for (int k = 0; k < intervals.count; ++k) {
    const double t = (k % 2 ? 1.0 : -1.0) * kMostError[k / 2 % 2], r = intervals.distance(k, t), rate = place_of(intervals, 1.0 / r).rate;  // a sample will do
    const std::vector<Jet> f = functions_at(r, rate, basis, maps, with_silu);
    const double* c = table.data() + static_cast<std::size_t>(k) * kCoefficients * n;
    for (std::size_t o = 0; o < n; ++o) {
      double d = 0.0;
      for (int q = kCoefficients - 1; q; --q) d = d * t + q * c[static_cast<std::size_t>(q) * n + o];
      worst = std::fmax(worst, std::fabs((d - f[o].d) * rate));
      largest = std::fmax(largest, std::fabs(f[o].d * rate));
    }
  }
  return largest > 0.0 ? worst / largest : 0.0;
}

}  // namespace mfmd
