// The native OpenMM force, and what a platform has to give to compute it: openmm.cpp for Reference and CPU, openmm_cuda.cpp for CUDA.
#pragma once

#include <openmm/Force.h>
#include <openmm/KernelImpl.h>
#include <openmm/OpenMMException.h>
#include <openmm/System.h>
#include <openmm/internal/ContextImpl.h>

#include <map>

#include "../heads.hpp"
#include "../mfmd.hpp"

namespace mfmd::openmm {

using OpenMM::ContextImpl;
using OpenMM::OpenMMException;
using OpenMM::System;

constexpr double kAngstrom = 10.0;                              // in a nm
constexpr double kKJPerMol = 96485.33212331001 / 1000.0;        // in an eV
constexpr double kForceUnit = kKJPerMol * kAngstrom;            // kJ/mol/nm in an eV/Å

// What mfmd refuses in there, as OpenMM says it.
template <class Body> auto as_openmm(const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw OpenMMException(std::string("mfmd: ") + error.what());
  }
}

// A term's weight is `weight`, times the global parameter `parameter` where one is named.
struct WeightedHead {
  int head;
  double weight;
  std::string parameter;
};

// sum of weighted heads over the chosen atoms
class Force final : public OpenMM::Force {
 public:
  std::shared_ptr<const Model> model;
  std::vector<int> atoms, numbers;  // indices into the system, and their atomic numbers
  std::vector<std::pair<int, int>> bonds;
  std::vector<State> states = {{0, 0}};  // of the fragments, as they are said; multiplicity 0: nothing is
  std::vector<int> fragment;  // of each of the atoms, which of them it belongs to; none: there is one
  bool allow_unseen_state = false;
  std::vector<WeightedHead> terms;
  std::map<std::string, double> parameters;  // global ones, with their defaults
  bool periodic = false, single = true;
  int threads = 0;  // 0: every core of the process

  bool usesPeriodicBoundaryConditions() const override { return periodic; }

 protected:
  OpenMM::ForceImpl* createImpl() const override;
};

class Kernel : public OpenMM::KernelImpl {
 public:
  static std::string Name() { return "CalcMfmdForce"; }
  using KernelImpl::KernelImpl;
  virtual void initialize(const System& system, const Force& force) = 0;
  virtual double execute(ContextImpl& context, bool forces) = 0;  // the energy, kJ/mol

 protected:
  // Whether the System has all atoms of the force.
  static void check_atoms(const System& system, const Force& force) {
    const auto check = [&](int atom) {
      if (atom < 0 || atom >= system.getNumParticles())
        throw OpenMMException("mfmd: the force acts on atom " + std::to_string(atom) + ", and the System has " + std::to_string(system.getNumParticles()));
    };
    for (const int atom : force.atoms) check(atom);
    for (const auto& [a, b] : force.bonds) check(a), check(b);
  }
  // The states in which the force's atoms are evaluated, and that its heads know them.
  static std::vector<State> states_of(const Force& force) {
    Structure s;
    s.atoms = static_cast<int>(force.numbers.size());
    s.fragment = fragment_of(force);
    std::vector<Term> terms;
    for (const WeightedHead& term : force.terms) terms.push_back({term.head, term.weight});
    return as_openmm([&] {
      s.states = mfmd::states_of(force.numbers.data(), s.atoms, force.states, s.fragment, force.periodic);
      check_states(*force.model, heads_of(*force.model, terms), s, force.allow_unseen_state);
      return s.states;
    });
  }
  static const int* fragment_of(const Force& force) { return force.fragment.empty() ? nullptr : force.fragment.data(); }
  static std::vector<Term> terms_of(ContextImpl& context, const Force& force) {
    std::vector<Term> terms;
    for (const WeightedHead& term : force.terms) terms.push_back({term.head, term.weight * (term.parameter.empty() ? 1.0 : context.getParameter(term.parameter))});
    return terms;
  }
};

}  // namespace mfmd::openmm
