// The radial basis and the cutoff at one distance, with derivatives: for the tables, for exact evaluation, for the self pair.
#pragma once

#include <cmath>

namespace mfmd {

constexpr int kMaxRadial = 512;  // functions of a basis

struct RadialBasis {
  enum Kind { expnorm, smooth_bessel } kind = expnorm;
  int size = 0;
  double cutoff = 0.0;
  const double *means = nullptr, *betas = nullptr;  // [size], of expnorm
};

namespace {  // what is compiled for one instruction set is no other's

constexpr double kPi = 3.14159265358979323846;

// A value with its derivative along one variable.
struct Jet {
  double v = 0.0, d = 0.0;

  // f(this), given f and its derivative at v.
  Jet through(double f, double df) const { return {f, df * d}; }
  friend Jet operator*(const Jet& a, const Jet& b) { return {a.v * b.v, a.d * b.v + a.v * b.d}; }
  friend Jet operator*(double k, const Jet& a) { return {k * a.v, k * a.d}; }
  friend Jet operator+(const Jet& a, const Jet& b) { return {a.v + b.v, a.d + b.d}; }
  friend Jet operator+(const Jet& a, double k) { return {a.v + k, a.d}; }
  friend Jet exp(const Jet& a) {
    const double e = std::exp(a.v);
    return a.through(e, e);
  }
  friend Jet cos(const Jet& a) { return a.through(std::cos(a.v), -std::sin(a.v)); }
  // sin(x) / x
  friend Jet sinc(const Jet& a) {
    const double x = a.v, x2 = x * x;
    if (x2 < 1e-4) return a.through(1.0 - x2 / 6.0 + x2 * x2 / 120.0, -x / 3.0 + x * x2 / 30.0);
    const double f = std::sin(x) / x;
    return a.through(f, (std::cos(x) - f) / x);
  }
  friend Jet silu(const Jet& a) {
    const double s = 1.0 / (1.0 + std::exp(-a.v));
    return a.through(a.v * s, s + a.v * s * (1.0 - s));
  }
};

inline Jet envelope(const Jet& d, double cutoff) { return 0.5 * (cos((kPi / cutoff) * d) + 1.0); }

// out: [basis.size]
inline void evaluate(const RadialBasis& basis, const Jet& d, Jet* out) {
  if (basis.kind == RadialBasis::expnorm) {  // Unke & Meuwly 2019, eqs. 7-9
    const Jet cut = envelope(d, basis.cutoff), x = exp((-5.0 / basis.cutoff) * d);
    for (int k = 0; k < basis.size; ++k) {
      const Jet t = x + -basis.means[k];
      out[k] = cut * exp(-basis.betas[k] * (t * t));
    }
    return;
  }
  double before = 1.0;  // d_(n-1) of Kocer, Mason & Erturk 2020
  for (int n = 0; n < basis.size; ++n) {
    const double a = n + 1, b = n + 2, rc = basis.cutoff;
    const double factor = (n % 2 ? -1.0 : 1.0) * std::sqrt(2.0) * kPi * std::pow(rc, -1.5) * a * b / std::sqrt(a * a + b * b);
    const Jet f = factor * (sinc((a * kPi / rc) * d) + sinc((b * kPi / rc) * d));
    const double e = n * n * b * b / (4.0 * a * a * a * a + 1.0), now = 1.0 - e / before;
    out[n] = n == 0 ? f : (1.0 / std::sqrt(now)) * (f + std::sqrt(e / before) * out[n - 1]);
    if (n > 0) before = now;
  }
}

}  // namespace

}  // namespace mfmd
