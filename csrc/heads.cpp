#include "heads.hpp"

#include <algorithm>
#include <cmath>

#include "states.hpp"

namespace mfmd {

namespace {

// Calls body(head) for the head and what it is relative to, one after the other.
template <class Body> void chain(const Model& model, int head, const Body& body) {
  for (int h = head; h >= 0; h = model.levels()[static_cast<std::size_t>(h)].relative_to) body(static_cast<std::size_t>(h));
}

std::size_t kind_of(const Level& level, int number) {
  return static_cast<std::size_t>(std::lower_bound(level.elements.begin(), level.elements.end(), number) - level.elements.begin());
}

template <class T> double spread_of(const Structure& s, const Level& level, const ErrorBars& bars, const T* features, const int* row_of, std::size_t F) {
  const std::size_t members = static_cast<std::size_t>(bars.members), H = bars.bias.size(), own = H / members;
  std::vector<double> energies(members, 0.0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(s.atoms); ++i) {
    const std::size_t kind = kind_of(level, s.numbers[i]);
    const T* feature = features + static_cast<std::size_t>(row_of[i]) * F;
    for (std::size_t k = 0; k < H; ++k) {
      double a = bars.bias[k];
      for (std::size_t f = 0; f < F; ++f) a += bars.hidden[k * F + f] * feature[f];
      energies[k / own] += static_cast<double>(members) * bars.out[k] * a / (1.0 + std::exp(-a));
    }
    for (std::size_t m = 0; m < members; ++m) energies[m] -= bars.alone[kind * members + m];
  }
  double mean = 0.0, variance = 0.0;
  for (const double e : energies) mean += e / static_cast<double>(members);
  for (const double e : energies) variance += (e - mean) * (e - mean) / static_cast<double>(members - 1);
  return bars.scale * bars.calibration * std::sqrt(variance);
}

// eV²
template <class T> double variance_of(const Model& model, int head, const Structure& s, const T* features, const int* row_of, int channels) {
  const Level& level = model.levels()[static_cast<std::size_t>(head)];
  const ErrorBars& bars = model.error_bars(head);
  const std::size_t F = static_cast<std::size_t>(channels), size = level.elements.size() * (F + 1);
  if (bars.members) return std::pow(spread_of(s, level, bars, features, row_of, F), 2);
  std::vector<double> phi(size, 0.0), sums(size, 0.0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(s.atoms); ++i) {
    const std::size_t kind = kind_of(level, s.numbers[i]);
    const T* own = features + static_cast<std::size_t>(row_of[i]) * F;
    for (std::size_t f = 0; f < F; ++f) phi[kind * (F + 1) + f] += own[f] - bars.isolated[kind * F + f];
    phi[kind * (F + 1) + F] += 1.0;
  }
  std::vector<std::size_t> rows;  // of elements that are there
  for (std::size_t row = 0; row < size; ++row)
    if (phi[row] != 0.0) rows.push_back(row);
  const auto add = [&](std::size_t row, std::size_t first) {
    for (std::size_t column = first; column <= row; ++column) sums[column] += bars.factor[row * size + column] * phi[row];
  };
  std::size_t k = 0;
  for (; k + 4 <= rows.size(); k += 4) {  // a sum is read and written once for four
    const std::size_t row[4] = {rows[k], rows[k + 1], rows[k + 2], rows[k + 3]};
    const double *a = &bars.factor[row[0] * size], *b = &bars.factor[row[1] * size], *c = &bars.factor[row[2] * size], *d = &bars.factor[row[3] * size];
    const double p = phi[row[0]], q = phi[row[1]], r = phi[row[2]], t = phi[row[3]];
    for (std::size_t column = 0; column <= row[0]; ++column) sums[column] += a[column] * p + b[column] * q + c[column] * r + d[column] * t;
    for (std::size_t j = 1; j < 4; ++j) add(row[j], row[0] + 1);
  }
  for (; k < rows.size(); ++k) add(rows[k], 0);
  double variance = bars.noise * s.atoms;
  for (const double sum : sums) variance += sum * sum;
  return bars.of_difference ? variance + variance_of(model, level.relative_to, s, features, row_of, channels) : variance;
}

}  // namespace

Heads heads_of(const Model& model, const std::vector<Term>& terms) {
  const auto& levels = model.levels();
  if (terms.empty()) throw InputError("no term to evaluate: name a head");
  std::vector<double> weight(levels.size(), 0.0);
  std::vector<bool> wanted(levels.size(), false);
  for (const Term& term : terms) {
    if (term.head < 0 || term.head >= static_cast<int>(levels.size())) throw InputError("there is no head number " + std::to_string(term.head));
    if (!std::isfinite(term.weight)) throw InputError("the weight of head " + levels[static_cast<std::size_t>(term.head)].name + " is not finite");
    chain(model, term.head, [&](std::size_t h) { weight[h] += term.weight, wanted[h] = true; });
  }
  Heads heads{terms, {}, std::vector<int>(levels.size(), -1)};
  for (std::size_t h = 0; h < levels.size(); ++h)
    if (wanted[h]) {
      heads.place[h] = static_cast<int>(heads.used.size());
      heads.used.push_back({static_cast<int>(h), weight[h]});
    }
  return heads;
}

void check_elements(const Model& model, const Heads& heads, const Structure& s) {
  std::vector<bool> trained(119);
  for (const Heads::Used& used : heads.used) {
    const Level& level = model.levels()[static_cast<std::size_t>(used.head)];
    trained.assign(119, false);
    for (const int z : level.elements) trained[static_cast<std::size_t>(z)] = true;
    for (int i = 0; i < s.atoms + s.ghosts; ++i) {
      const int z = s.numbers[i];
      if (z >= 1 && z <= 118 && trained[static_cast<std::size_t>(z)]) continue;
      std::string known;
      for (const int e : level.elements) known += " " + symbol(e);
      throw InputError("atom " + std::to_string(i) + " is " + symbol(z) + ", and head " + level.name + " was trained on" + known + " only");
    }
  }
}

void check_states(const Model& model, const Heads& heads, const Structure& s, bool allow_unseen) {
  if (allow_unseen) return;
  const auto alone = [&](std::size_t fragment) {  // a neutral atom by itself is what E0 is of
    if (s.pairs) return false;
    int atoms = s.fragment ? 0 : s.atoms;
    for (int i = 0; i < s.atoms && s.fragment; ++i) atoms += s.fragment[i] == static_cast<int>(fragment);
    return atoms <= 1;
  };
  for (std::size_t k = 0; k < std::max<std::size_t>(s.states.size(), 1); ++k) {
    const State state = s.states.empty() ? State() : s.states[k];
    for (const Heads::Used& used : heads.used) {
      const Level& level = model.levels()[static_cast<std::size_t>(used.head)];
      const bool seen = level.states.empty() ? state.charge == 0 && state.multiplicity <= 2 : std::find(level.states.begin(), level.states.end(), state) != level.states.end();
      if (seen || (state == State() && alone(k))) continue;
      std::string known;
      for (const State& one : level.states) known += (known.empty() ? "" : "; ") + told(one);
      if (known.empty()) known = "neutral structures of the lowest multiplicity";
      throw InputError((s.states.size() > 1 ? "fragment " + std::to_string(k) + " has " : "it has ") + told(state) + ", and head " + level.name + " was trained on " + known +
                       " only; allow_unseen_state evaluates it all the same");
    }
  }
}

double constant_of(const Model& model, int level, const Structure& s) {
  if (s.pairs) return 0.0;
  double sum = model.constant(level);
  for (const State& state : s.states) sum += model.of_state(level, state);
  return sum;
}

std::vector<double> constants_of(const Model& model, const Heads& heads, const Structure* structures, int count) {
  std::vector<double> out(static_cast<std::size_t>(count), 0.0);
  for (const Term& term : heads.terms)
    for (int k = 0; k < count; ++k) {
      out.push_back(constant_of(model, term.head, structures[k]));
      out[static_cast<std::size_t>(k)] += term.weight * out.back();
    }
  return out;
}

std::vector<double> combination(const Model& model, const Heads& heads) {
  std::vector<double> out(heads.terms.size() * heads.used.size(), 0.0);
  for (std::size_t t = 0; t < heads.terms.size(); ++t)
    chain(model, heads.terms[t].head, [&](std::size_t h) { out[t * heads.used.size() + static_cast<std::size_t>(heads.place[h])] = 1.0; });
  return out;
}

void add_up(const Model& model, const Heads& heads, const Structure& s, const double* head_sums, Result& result) {
  result.energy = 0.0;
  result.term_energies.assign(heads.terms.size(), 0.0);
  for (std::size_t t = 0; t < heads.terms.size(); ++t) {
    result.term_energies[t] = constant_of(model, heads.terms[t].head, s);
    chain(model, heads.terms[t].head, [&](std::size_t h) { result.term_energies[t] += head_sums[heads.place[h]]; });
    result.energy += heads.terms[t].weight * result.term_energies[t];
  }
  if (!std::isfinite(result.energy)) throw InputError("the energy is not finite; the structure is far outside what the model was trained on");
}

void add_up_atoms(const Model& model, const Heads& heads, const Structure& s, const double* energies, const int* row_of, int rows, Result& result) {
  result.atom_energies.assign(static_cast<std::size_t>(s.atoms), 0.0);
  std::vector<double> share(s.pairs ? 0 : s.states.size(), 0.0);  // of an atom of each fragment
  std::vector<int> atoms(share.size(), 0);
  for (int i = 0; i < s.atoms && !share.empty(); ++i) ++atoms[s.fragment ? static_cast<std::size_t>(s.fragment[i]) : 0];
  for (std::size_t k = 0; k < share.size(); ++k)
    for (const Term& term : heads.terms) share[k] += term.weight * model.of_state(term.head, s.states[k]) / atoms[k];
  for (int i = 0; i < s.atoms && !share.empty(); ++i) result.atom_energies[static_cast<std::size_t>(i)] = share[s.fragment ? static_cast<std::size_t>(s.fragment[i]) : 0];
  for (const Term& term : heads.terms)
    chain(model, term.head, [&](std::size_t h) {
      const double* of_head = energies + static_cast<std::size_t>(heads.place[h]) * static_cast<std::size_t>(rows);
      for (std::size_t i = 0; i < result.atom_energies.size(); ++i) result.atom_energies[i] += term.weight * of_head[row_of[i]];
    });
}

void check_forces(const Result& result) {
  for (const double f : result.forces)
    if (!std::isfinite(f)) throw InputError("a force is not finite; the structure is far outside what the model was trained on");
}

template <class T> void add_errors(const Model& model, const Heads& heads, const Structure& s, const T* features, const int* row_of, int F, Result& result) {
  for (const Term& term : heads.terms)
    result.term_errors.push_back(model.levels()[static_cast<std::size_t>(term.head)].error_bars ? std::sqrt(variance_of(model, term.head, s, features, row_of, F)) : NAN);
}
template void add_errors<float>(const Model&, const Heads&, const Structure&, const float*, const int*, int, Result&);
template void add_errors<double>(const Model&, const Heads&, const Structure&, const double*, const int*, int, Result&);

}  // namespace mfmd
