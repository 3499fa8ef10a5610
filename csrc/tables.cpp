#include "tables.hpp"

#include <cmath>

namespace mfmd {

namespace {

// The functions at `r`, with derivatives with respect to a variable that log r runs `step` of per unit.
std::vector<Jet> functions_at(double r, double step, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const Jet d{r, r * step, r * step * step};
  std::vector<Jet> in(static_cast<std::size_t>(basis.size)), out;
  evaluate(basis, d, in.data());
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
  const Jet cut = envelope(d, basis.cutoff);
  for (Jet& f : out) f = cut * f;
  return out;
}

double knot_step(int knots, double cutoff) { return std::log(cutoff / kFirstKnot) / (knots - 1); }

}  // namespace

std::vector<double> radial_table(int knots, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const double step = knot_step(knots, basis.cutoff);
  const std::size_t functions = maps.back().b->size();
  std::vector<double> table(static_cast<std::size_t>(knots) * 3 * functions);
  for (int knot = 0; knot < knots; ++knot) {
    const double r = knot == knots - 1 ? basis.cutoff : kFirstKnot * std::exp(step * knot);
    const std::vector<Jet> f = functions_at(r, step, basis, maps, with_silu);
    double* at = table.data() + static_cast<std::size_t>(knot) * 3 * functions;
    for (std::size_t o = 0; o < functions; ++o) at[o] = f[o].v, at[functions + o] = f[o].d, at[2 * functions + o] = f[o].dd;
  }
  return table;
}

double table_error(const std::vector<double>& table, int knots, const RadialBasis& basis, const std::vector<Affine>& maps, bool with_silu) {
  const double step = knot_step(knots, basis.cutoff);
  const std::size_t n = maps.back().b->size();
  double worst = 0.0, largest = 0.0;
  for (int knot = 0; knot < knots - 1; knot += 3) {  // a sample will do
    const std::vector<Jet> f = functions_at(kFirstKnot * std::exp(step * (knot + 0.25)), step, basis, maps, with_silu);
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
