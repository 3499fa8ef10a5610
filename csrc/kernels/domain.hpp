// What a model was trained on, element by element, and how far an atom is outside of it; on host and device.
#pragma once

#include <cstdint>

#include "tensor.hpp"

namespace mfmd {

struct Domain {  // arrays by the slot of an element
  int slots, F;  // slots: of the elements, whatever their state
  double cutoff;
  const double* nearest;  // [slots][slots], Å, how near two such atoms came; 0: never within the cutoff
  const int* neighbors;   // [slots][2], the fewest and the most within the cutoff
  const float *low, *high, *per;  // [slots][F], the range of the last features, and what it is measured by: one over a length
};

// What is farther than so much counts as far outside.
constexpr double kNearer = 0.05;         // of the nearest distance
constexpr double kMoreNeighbors = 0.1;   // of the most (or the fewest), and one more
constexpr double kBeyondFeatures = 0.1;  // of their range

struct Excess {
  enum What : int { pair_, distance_, neighbors_, features_, nothing_ };
  What what;
  double by;           // in units of what counts as far, to two digits; at most `nothing_` up to 1
  int other;           // the second atom of a pair, or -1
  double value;        // Å, a number, or a share of the range
};

// What is to be told first: a pair before its consequences, then the farther one. Rounded, so that another order of sums changes nothing.
MFMD_HD bool worse(const Excess& a, const Excess& b) { return a.what != b.what ? a.what < b.what : a.by > b.by; }

MFMD_HD Excess excess_of(Excess::What what, double by, int other, double value) {
  const double rounded = static_cast<double>(static_cast<std::int64_t>(100.0 * (by < 1e9 ? by : 1e9) + 0.5)) / 100.0;
  if (!(rounded > 1.0)) return {Excess::nothing_, 0.0, -1, 0.0};
  return {what, rounded, other, value};
}

// Of an atom of the slot `own`, whose neighbours are rows j, of the atoms order[j], which are told apart by id(atom). An atom by itself is outside of
// nothing: its energy is E0.
template <class T, class Id>
MFMD_HD Excess excess(const Domain& d, int own, int count, const int* j, const double* distances, const int* slot, const int* order, const T* features, const Id& id) {
  Excess worst{Excess::nothing_, 0.0, -1, 0.0};
  if (count == 0) return worst;
  own %= d.slots;
  const auto consider = [&](const Excess& one) {
    if (worse(one, worst) || (one.other >= 0 && !worse(worst, one) && id(one.other) < id(worst.other))) worst = one;
  };
  for (int k = 0; k < count; ++k) {
    const double near = d.nearest[own * d.slots + slot[j[k]] % d.slots], r = distances[k];
    if (near == 0.0) consider(excess_of(Excess::pair_, 1.0 + d.cutoff / r, order[j[k]], r));
    else if (r < near) consider(excess_of(Excess::distance_, (near - r) / (kNearer * near), order[j[k]], r));
  }
  const double fewest = d.neighbors[2 * own], most = d.neighbors[2 * own + 1];
  consider(excess_of(Excess::neighbors_, (count - most) / (kMoreNeighbors * most + 1.0), -1, count));
  consider(excess_of(Excess::neighbors_, (fewest - count) / (kMoreNeighbors * fewest + 1.0), -1, count));
  constexpr int kLanes = 16;  // of F, side by side
  float farthest[kLanes] = {};
  const float *low = d.low + own * d.F, *high = d.high + own * d.F, *per = d.per + own * d.F;
  for (int f = 0; f < d.F; f += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const float x = static_cast<float>(features[f + k]), below = low[f + k] - x, above = x - high[f + k];
      const float one = (below > above ? below : above) * per[f + k];
      farthest[k] = one > farthest[k] ? one : farthest[k];
    }
  float beyond = 0.0f;
  for (const float one : farthest) beyond = one > beyond ? one : beyond;
  consider(excess_of(Excess::features_, beyond / kBeyondFeatures, -1, beyond));
  return worst;
}

}  // namespace mfmd
