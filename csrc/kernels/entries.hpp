// A neighbour in a list, and what CPU and CUDA lists do with one: order, shift, vector, and which bin lies how many steps away.
#pragma once

#include "tensor.hpp"

namespace mfmd {

struct Entry {
  int j, s[3];  // an atom, and how many cells away
};

// (j, S) order
MFMD_HD bool before(const Entry& a, const Entry& b) {
  if (a.j != b.j) return a.j < b.j;
  for (int k = 0; k < 3; ++k)
    if (a.s[k] != b.s[k]) return a.s[k] < b.s[k];
  return false;
}

MFMD_HD void shift_vector(const double* cell, const int s[3], double out[3]) {
  for (int a = 0; a < 3; ++a) out[a] = s[0] * cell[a] + s[1] * cell[3 + a] + s[2] * cell[6 + a];
}
// (R[j] - R[i]) + S @ cell: in this order the reversed pair is the exact negative.
MFMD_HD void pair_vector(const double* ri, const double* rj, const double shift[3], double d[3]) {
  for (int a = 0; a < 3; ++a) d[a] = (rj[a] - ri[a]) + shift[a];
}

// Steps from bin b of `bins` along one direction: the bin arrived at, and into which image of the cell.
MFMD_HD int step_from(int b, int step, int bins, int& image) {
  const int to = b + step;
  image = to >= 0 ? to / bins : -((bins - 1 - to) / bins);
  return to - image * bins;
}

}  // namespace mfmd
