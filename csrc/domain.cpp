#include "domain.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace mfmd {

namespace {

constexpr double kNarrowest = 0.02;  // width of a feature's range, as a share of its range over all elements

std::string digits(double value, int places) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", places, value);
  return text;
}

}  // namespace

TrainedOn trained_on(const std::vector<double>& nearest, const std::vector<double>& neighbors, const std::vector<double>& features, int slots, int F, double cutoff,
                     const std::string& origin) {
  TrainedOn t;
  t.nearest = nearest;
  for (const double d : nearest)
    if (!(d >= 0.0 && d < cutoff)) throw ModelFileError(origin + ": a distance in domain.nearest is none within the cutoff");
  for (std::size_t k = 0; k < neighbors.size(); ++k) {
    if (!(neighbors[k] >= 0.0 && neighbors[k] < 1e6) || (k % 2 && neighbors[k] < neighbors[k - 1])) throw ModelFileError(origin + ": a range in domain.neighbors is none");
    t.neighbors.push_back(static_cast<int>(neighbors[k]));
  }
  for (int slot = 0; slot < slots; ++slot)
    for (int f = 0; f < F; ++f) {
      const std::size_t at = static_cast<std::size_t>(2 * slot * F + f), width = static_cast<std::size_t>(F);
      if (features[at] > features[at + width]) throw ModelFileError(origin + ": a range in domain.features is none");
      double low = features[at], high = features[at + width];
      for (int other = 0; other < slots; ++other) {
        const std::size_t of_other = static_cast<std::size_t>(2 * other * F + f);
        low = std::min(low, features[of_other]), high = std::max(high, features[of_other + width]);
      }
      t.low.push_back(static_cast<float>(features[at]));
      t.high.push_back(static_cast<float>(features[at + width]));
      t.per.push_back(static_cast<float>(1.0 / std::max({features[at + width] - features[at], kNarrowest * (high - low), 1e-4})));
    }
  t.view = {slots, F, cutoff, t.nearest.data(), t.neighbors.data(), t.low.data(), t.high.data(), t.per.data()};
  return t;
}

constexpr double kKind = 1e10;  // in Outside::by, between a kind and the next worse

int grade(double by) {
  const double kind = std::floor(by / kKind), doublings = std::floor(std::log2(std::max(1.0, by - kind * kKind)));
  return static_cast<int>(64.0 * kind + (kind > 0.0 ? std::min(doublings, 63.0) : 0.0));
}

Outside outside(const Model& model, const Structure& s, const std::vector<Excess>& excess, const int* row_of, int first) {
  const auto name = [&](int atom) -> std::int64_t { return s.ids ? s.ids[atom] : atom; };
  Excess worst{Excess::nothing_, 0.0, -1, 0.0};
  int at = -1;
  for (int i = 0; i < s.atoms; ++i) {
    const Excess& one = excess[static_cast<std::size_t>(row_of[i])];
    if (one.what == Excess::nothing_) continue;
    if (at < 0 || worse(one, worst) || (!worse(worst, one) && name(i) < name(at))) worst = one, at = i;
  }
  Outside out;
  if (at < 0) return out;
  const Domain& d = *model.domain();
  const auto& elements = model.elements();
  const auto slot_of = [&](int z) { return static_cast<int>(std::lower_bound(elements.begin(), elements.end(), z) - elements.begin()); };
  const auto called = [&](int atom) { return "atom " + std::to_string(name(atom)) + " (" + symbol(s.numbers[atom]) + ")"; };
  const int own = slot_of(s.numbers[at]);
  const int second = worst.other - first;
  std::string text = called(at);
  switch (worst.what) {
    case Excess::pair_:
      text += " is " + digits(worst.value, 2) + " Å from " + called(second) + ", and no such pair was within " + digits(d.cutoff, 1) + " Å in training";
      break;
    case Excess::distance_:
      text += " is " + digits(worst.value, 2) + " Å from " + called(second) + ", and the nearest such pair in training was at " +
              digits(d.nearest[own * d.slots + slot_of(s.numbers[second])], 2) + " Å";
      break;
    case Excess::neighbors_:
      text += " has " + digits(worst.value, 0) + " neighbours within " + digits(d.cutoff, 1) + " Å, and in training " + symbol(s.numbers[at]) + " had " +
              std::to_string(d.neighbors[2 * own]) + " to " + std::to_string(d.neighbors[2 * own + 1]);
      break;
    default:
      text += " has surroundings unlike those of any " + symbol(s.numbers[at]) + " in training (a feature is beyond its range by " + digits(100.0 * worst.value, 0) + " % of it)";
  }
  out.by = worst.by + kKind * (Excess::nothing_ - worst.what);
  out.atom = name(at);
  out.sentence = "far outside what the model was trained on: " + text;
  return out;
}

}  // namespace mfmd
