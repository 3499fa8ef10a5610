#include "tables.hpp"

#include <cmath>

namespace mfmd {

namespace {

// A value with its first and second derivative along one variable.
struct Jet {
  double v = 0.0, d = 0.0, dd = 0.0;
};
Jet operator*(const Jet& a, const Jet& b) { return {a.v * b.v, a.d * b.v + a.v * b.d, a.dd * b.v + 2.0 * a.d * b.d + a.v * b.dd}; }
Jet operator*(double k, const Jet& a) { return {k * a.v, k * a.d, k * a.dd}; }
Jet operator+(const Jet& a, double k) { return {a.v + k, a.d, a.dd}; }
// f(a), given f and its derivatives at a.v.
Jet chain(const Jet& a, double f, double df, double ddf) { return {f, df * a.d, ddf * a.d * a.d + df * a.dd}; }
Jet exp(const Jet& a) {
  const double e = std::exp(a.v);
  return chain(a, e, e, e);
}
Jet cos(const Jet& a) { return chain(a, std::cos(a.v), -std::sin(a.v), -std::cos(a.v)); }
Jet silu(const Jet& a) {
  const double s = 1.0 / (1.0 + std::exp(-a.v)), ds = s * (1.0 - s);
  return chain(a, a.v * s, s + a.v * ds, ds * (2.0 + a.v * (1.0 - 2.0 * s)));
}

// The functions at `r`, with derivatives with respect to a variable that log r runs `step` of per unit.
std::vector<Jet> functions_at(double r, double step, const std::vector<double>& means, const std::vector<double>& betas, double cutoff,
                              const std::vector<Affine>& maps, bool with_silu) {
  const Jet d{r, r * step, r * step * step};
  const Jet envelope = 0.5 * (cos((3.14159265358979323846 / cutoff) * d) + 1.0);
  const Jet x = exp((-5.0 / cutoff) * d);
  std::vector<Jet> in(means.size()), out;
  for (std::size_t k = 0; k < in.size(); ++k) {
    const Jet t = x + -means[k];
    in[k] = envelope * exp(-betas[k] * (t * t));
  }
  for (const Affine& map : maps) {
    out.assign(map.b->size(), Jet{});
    for (std::size_t o = 0; o < out.size(); ++o) {
      const double* row = map.w->data() + o * in.size();
      Jet sum{(*map.b)[o], 0.0, 0.0};
      for (std::size_t i = 0; i < in.size(); ++i) {
        sum.v += row[i] * in[i].v;
        sum.d += row[i] * in[i].d;
        sum.dd += row[i] * in[i].dd;
      }
      out[o] = with_silu ? silu(sum) : sum;
    }
    in = out;
  }
  for (Jet& f : out) f = envelope * f;
  return out;
}

double knot_step(int knots, double cutoff) { return std::log(cutoff / kFirstKnot) / (knots - 1); }

}  // namespace

std::vector<double> radial_table(int knots, const std::vector<double>& means, const std::vector<double>& betas, double cutoff,
                                 const std::vector<Affine>& maps, bool with_silu) {
  const double step = knot_step(knots, cutoff);
  const std::size_t functions = maps.back().b->size();
  std::vector<double> table(static_cast<std::size_t>(knots) * 3 * functions);
  for (int knot = 0; knot < knots; ++knot) {
    const double r = knot == knots - 1 ? cutoff : kFirstKnot * std::exp(step * knot);
    const std::vector<Jet> f = functions_at(r, step, means, betas, cutoff, maps, with_silu);
    double* at = table.data() + static_cast<std::size_t>(knot) * 3 * functions;
    for (std::size_t o = 0; o < functions; ++o) at[o] = f[o].v, at[functions + o] = f[o].d, at[2 * functions + o] = f[o].dd;
  }
  return table;
}

double table_error(const std::vector<double>& table, int knots, const std::vector<double>& means, const std::vector<double>& betas,
                   double cutoff, const std::vector<Affine>& maps, bool with_silu) {
  const double step = knot_step(knots, cutoff);
  const std::size_t n = maps.back().b->size();
  double worst = 0.0, largest = 0.0;
  for (int knot = 0; knot < knots - 1; knot += 3) {  // a sample will do
    const std::vector<Jet> f = functions_at(kFirstKnot * std::exp(step * (knot + 0.25)), step, means, betas, cutoff, maps, with_silu);
    double value[6], slope[6];
    hermite(0.25, value, slope);  // the slope's error has a node half-way
    for (std::size_t o = 0; o < n; ++o) {
      double d = 0.0;
      for (std::size_t k = 0; k < 6; ++k) d += slope[k] * table[(static_cast<std::size_t>(knot) * 3 + k) * n + o];
      worst = std::fmax(worst, std::fabs(d - f[o].d));
      largest = std::fmax(largest, std::fabs(f[o].d));
    }
  }
  return largest > 0.0 ? worst / largest : 0.0;
}

}  // namespace mfmd
