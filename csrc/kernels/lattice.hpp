// The cell of a structure, on host and device.
#pragma once

#include <cmath>

#include "tensor.hpp"

namespace mfmd {

// The cell with its non-periodic directions replaced by unit vectors normal to the periodic ones, so that a cell
// with missing vectors can be inverted, and fractional coordinates along these are lengths in Å.
struct Lattice {
  double cell[9], inverse[9];  // rows; inverse: fractional = position @ inverse
  double height[3];            // distance between opposite faces, Å
  bool periodic[3];
};

MFMD_HD double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
MFMD_HD void cross(const double* a, const double* b, double* c) {
  c[0] = a[1] * b[2] - a[2] * b[1];
  c[1] = a[2] * b[0] - a[0] * b[2];
  c[2] = a[0] * b[1] - a[1] * b[0];
}
// v less its shares along `found` orthonormal directions, and the length of what is left.
MFMD_HD double remainder_of(const double* v, const double basis[3][3], int found, double* out) {
  for (int a = 0; a < 3; ++a) out[a] = v[a];
  for (int pass = 0; pass < 2; ++pass)
    for (int b = 0; b < found; ++b) {
      const double along = dot(out, basis[b]);
      for (int a = 0; a < 3; ++a) out[a] -= along * basis[b][a];
    }
  return sqrt(dot(out, out));
}

// -1, or the periodic direction whose vector is not finite, zero or in the plane of the others.
MFMD_HD int find_lattice(const double* cell, const bool periodic[3], Lattice& l) {
  double basis[3][3];
  int found = 0;
  // Gram-Schmidt over the periodic vectors gives the directions that are still free.
  for (int k = 0; k < 3; ++k) {
    l.periodic[k] = periodic[k];
    if (!periodic[k]) continue;
    const double* v = cell + 3 * k;
    const double length = sqrt(dot(v, v)), left = remainder_of(v, basis, found, basis[found]);
    if (!(length > 0.0 && length < 1e100 && left >= 1e-6 * length)) return k;
    for (int a = 0; a < 3; ++a) basis[found][a] /= left, l.cell[3 * k + a] = v[a];
    ++found;
  }
  for (int k = 0; k < 3; ++k) {
    if (periodic[k]) continue;
    // The axis that sticks out most of what is spanned so far.
    double best[3] = {}, longest = -1.0;
    for (int axis = 0; axis < 3; ++axis) {
      const double unit[3] = {axis == 0 ? 1.0 : 0.0, axis == 1 ? 1.0 : 0.0, axis == 2 ? 1.0 : 0.0};
      double out[3];
      const double left = remainder_of(unit, basis, found, out);
      if (left <= longest) continue;
      longest = left;
      for (int a = 0; a < 3; ++a) best[a] = out[a];
    }
    for (int a = 0; a < 3; ++a) l.cell[3 * k + a] = basis[found][a] = best[a] / longest;
    ++found;
  }
  double normal[3][3];
  for (int k = 0; k < 3; ++k) cross(l.cell + 3 * ((k + 1) % 3), l.cell + 3 * ((k + 2) % 3), normal[k]);
  const double volume = dot(l.cell, normal[0]);
  for (int k = 0; k < 3; ++k) {
    l.height[k] = fabs(volume) / sqrt(dot(normal[k], normal[k]));
    for (int a = 0; a < 3; ++a) l.inverse[3 * a + k] = normal[k][a] / volume;
  }
  return -1;
}

constexpr int kMostNeighbors = 20000;  // of an atom, within a list's reach; matter has a few hundred

// How many cells there are within `reach` of one, each of which a list has to look at.
MFMD_HD double cells_within(const Lattice& l, double reach) {
  double cells = 1.0;
  for (int k = 0; k < 3; ++k)
    if (l.periodic[k]) cells *= 1.0 + 2.0 * reach / l.height[k];
  return cells;
}
// Of a cell that is flat, or not in Å, there are too many.
MFMD_HD bool too_many_within(const Lattice& l, double reach) {
  bool flat = false;
  for (int k = 0; k < 3; ++k) flat = flat || (l.periodic[k] && reach > 100.0 * l.height[k]);
  return flat || !(cells_within(l, reach) <= 50000.0);
}

}  // namespace mfmd
