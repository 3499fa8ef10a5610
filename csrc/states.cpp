#include "states.hpp"

#include <algorithm>

namespace mfmd {

std::string told(const State& state) {
  return "charge " + std::string(state.charge > 0 ? "+" : "") + std::to_string(state.charge) + ", multiplicity " + std::to_string(state.multiplicity);
}

State state_of(const int* numbers, int atoms, int charge, int multiplicity, bool periodic) {
  long electrons = -static_cast<long>(charge);
  for (int i = 0; i < atoms; ++i) electrons += numbers[i];
  if (electrons < 0) throw InputError("charge is " + std::to_string(charge) + ", and there are " + std::to_string(electrons + charge) + " electrons in the neutral atoms");
  if (multiplicity < 0) throw InputError("multiplicity is " + std::to_string(multiplicity) + "; it is 2S + 1, 1 or more");
  if (atoms == 1 && charge == 0 && multiplicity == 1 && !periodic) return {};  // what is given back may be given again
  if (multiplicity > 0 && !(periodic && multiplicity == 1) && (multiplicity - 1 > electrons || (electrons - multiplicity) % 2 == 0))
    throw InputError("multiplicity is " + std::to_string(multiplicity) + ", which " + std::to_string(electrons) + " electrons cannot have");
  if (atoms == 1 && charge == 0 && !periodic) return {};
  return {charge, multiplicity > 0 ? multiplicity : periodic ? 1 : 1 + static_cast<int>(electrons % 2)};
}

std::vector<State> states_of(const int* numbers, int atoms, const std::vector<State>& said, const int* fragment, bool periodic) {
  check_fragments(said.size(), fragment, atoms);
  std::vector<std::vector<int>> of(said.size());
  for (int i = 0; i < atoms && !said.empty(); ++i) of[fragment ? static_cast<std::size_t>(fragment[i]) : 0].push_back(numbers[i]);
  std::vector<State> out;
  for (std::size_t k = 0; k < said.size(); ++k) {
    if (of[k].empty() && atoms > 0) throw InputError("fragment " + std::to_string(k) + " has no atoms");
    try {
      out.push_back(state_of(of[k].data(), static_cast<int>(of[k].size()), said[k].charge, said[k].multiplicity, periodic));
    } catch (const InputError& error) {
      if (said.size() == 1) throw;
      throw InputError("fragment " + std::to_string(k) + ": " + error.what());
    }
  }
  return out;
}

StateTerms state_terms(const State& state) {
  return {{static_cast<double>(std::max(state.charge, 0)), static_cast<double>(std::max(-state.charge, 0)), static_cast<double>(state.multiplicity - 1)}};
}

void check_fragments(std::size_t states, const int* fragment, int atoms) {
  if (!fragment) {
    if (states > 1) throw InputError("there are " + std::to_string(states) + " states, and no fragment is said of any atom");
    return;
  }
  for (int i = 0; i < atoms; ++i)
    if (fragment[i] < 0 || fragment[i] >= static_cast<int>(states))
      throw InputError("atom " + std::to_string(i) + " is of fragment " + std::to_string(fragment[i]) + ", and there are " + std::to_string(states) + " fragments");
}

int place_of(std::vector<State>& states, const State& state) {
  const auto hit = std::find(states.begin(), states.end(), state);
  const int place = static_cast<int>(hit - states.begin());
  if (hit == states.end()) states.push_back(state);
  return place;
}

std::vector<int> slots_of(const std::vector<int>& elements, std::vector<State>& states, const Structure* structures, int count) {
  std::vector<int> out;
  for (int k = 0; k < count; ++k) {
    const Structure& s = structures[k];
    for (const State& state : s.states) place_of(states, state);
    for (int i = 0; i < s.atoms + s.ghosts; ++i)
      out.push_back(place_of(states, state_of_atom(s, i)) * static_cast<int>(elements.size()) + static_cast<int>(std::lower_bound(elements.begin(), elements.end(), s.numbers[i]) - elements.begin()));
  }
  return out;
}

}  // namespace mfmd
