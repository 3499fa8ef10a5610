// What a request means for the heads, on every device: which of them are evaluated and with what weights, what they make of the
// sums over atoms, and how sure they are.
#pragma once

#include "mfmd.hpp"

namespace mfmd {

struct Heads {
  struct Used {
    int head;
    double weight;  // of its energy in the sum
  };
  std::vector<Term> terms;
  std::vector<Used> used;  // a relative head drags in what it is relative to
  std::vector<int> place;  // [levels], its place in `used`, or -1
};

// InputError for no term, an unknown head, a weight that is not finite.
Heads heads_of(const Model& model, const std::vector<Term>& terms);
// InputError for an atom of an element that one of the heads was not trained on.
void check_elements(const Model& model, const Heads& heads, const Structure& structure);
// InputError for a state that one of the heads was not trained on, unless it may be.
void check_states(const Model& model, const Heads& heads, const Structure& structure, bool allow_unseen);
// eV that a level's energy has in it whatever the positions: of a structure, and of its fragments; none of one whose host may have it in parts.
double constant_of(const Model& model, int level, const Structure& structure);
// The same of many structures: [terms + 1][structures], eV of the weighted sum and of each term.
std::vector<double> constants_of(const Model& model, const Heads& heads, const Structure* structures, int count);
// Which used heads each term is the sum of: [terms][used], 0 or 1.
std::vector<double> combination(const Model& model, const Heads& heads);
// Energies of the terms and their sum, from the sum over atoms of each used head and constant_of. InputError for one that is not finite.
void add_up(const Model& model, const Heads& heads, const Structure& structure, const double* head_sums, Result& result);
// Energies of atoms, from energies[used head][rows] of the rows of atoms; what a fragment has by its state is shared evenly among its atoms.
void add_up_atoms(const Model& model, const Heads& heads, const Structure& structure, const double* energies, const int* row_of, int rows, Result& result);
// Standard deviations of the terms' energies, NaN for heads without error bars, from the last features, [rows][F]: see ErrorBars.
template <class T> void add_errors(const Model& model, const Heads& heads, const Structure& structure, const T* features, const int* row_of, int F, Result& result);
// InputError for a force that is not finite.
void check_forces(const Result& result);

}  // namespace mfmd
