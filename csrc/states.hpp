// Charge and multiplicity: what a model makes of them.
#pragma once

#include "mfmd.hpp"

namespace mfmd {

// What a state's rows of elements, and its energy, are linear in: positive charge, negative charge, unpaired electrons.
struct StateTerms {
  double value[3];
};
StateTerms state_terms(const State& state);

// Of an atom of a structure.
inline State state_of_atom(const Structure& s, int atom) { return s.states.empty() ? State() : s.states[s.fragment ? static_cast<std::size_t>(s.fragment[atom]) : 0]; }
// InputError where the fragments of a structure, or of a DeviceStructures, are none of those that its states are of.
void check_fragments(std::size_t states, const int* fragment, int atoms);

// Where the rows of a state begin, in units of elements; the states that a model is packed with grow by those that are not among them.
int place_of(std::vector<State>& states, const State& state);
// Of all atoms and ghosts of structures, one behind the other: where the row of an atom's element and state is; the states are among `states` then.
std::vector<int> slots_of(const std::vector<int>& elements, std::vector<State>& states, const Structure* structures, int count);

}  // namespace mfmd
