// The screened repulsion of two nuclei (Ziegler, Biersack & Littmark 1985, eqs. 9, 10 of p. 147) under a cosine cutoff, for the CPU and CUDA devices.
#pragma once

#include <cmath>

#include "tensor.hpp"

namespace mfmd {

// eV, and its slope, eV/Å, of nuclei with charges zi and zj at a distance below the cutoff, Å.
MFMD_HD double repulsion(double zi, double zj, double distance, double cutoff, double* slope) {
  constexpr double kBohr = 0.529177210903, kCoulomb = 27.211386245988 * kBohr;  // CODATA 2018; eV Å
  constexpr double kFactor[4] = {0.1818, 0.5099, 0.2802, 0.02817}, kRate[4] = {3.2, 0.9423, 0.4029, 0.2016};
  const double per = (pow(zi, 0.23) + pow(zj, 0.23)) / (0.8854 * kBohr), x = per * distance, angle = 3.14159265358979323846 / cutoff * distance;
  double phi = 0.0, dphi = 0.0;
  for (int k = 0; k < 4; ++k) {
    const double term = kFactor[k] * exp(-kRate[k] * x);
    phi += term;
    dphi -= kRate[k] * per * term;
  }
  const double cut = 0.5 * (cos(angle) + 1.0), dcut = -0.5 * 3.14159265358979323846 / cutoff * sin(angle), bare = kCoulomb * zi * zj / distance;
  *slope = bare * (dphi * cut + phi * dcut - phi * cut / distance);
  return bare * phi * cut;
}

}  // namespace mfmd
