// The contract between the engine and its hosts: what a host gives, what it gets.
// No torch, no Python, no OpenMM. Units: Å, eV; cell vectors are rows.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace mfmd {

struct Error : std::runtime_error {  // every refusal is one of the two kinds below, one sentence each
  using std::runtime_error::runtime_error;
};
struct ModelFileError : Error {  // the model file is missing, damaged, newer than this engine, inconsistent
  using Error::Error;
};
struct InputError : Error {  // the structure, the head or an option cannot be evaluated
  using Error::Error;
};

// Of a structure, or of a fragment of it: all its atoms belong to it.
struct State {
  int charge = 0;        // elementary charges
  int multiplicity = 1;  // 2S + 1
};
inline bool operator==(const State& a, const State& b) { return a.charge == b.charge && a.multiplicity == b.multiplicity; }
inline bool operator!=(const State& a, const State& b) { return !(a == b); }
// The state in which atoms are evaluated. Multiplicity 0: nothing is said of it; then it is the lowest that these electrons can have, or 1 where the structure is
// periodic, since how many electrons a cell has is a matter of its size. A neutral atom by itself has the state (0, 1), whatever its multiplicity: its
// energy is what E0 stands for. InputError for a multiplicity that so many electrons cannot have.
State state_of(const int* numbers, int atoms, int charge, int multiplicity, bool periodic);
// The same of fragments, whose charges and multiplicities are said; fragment: [atoms], which of them an atom belongs to, or null: there is one.
// InputError, too, for an atom that belongs to none, and a fragment without atoms.
std::vector<State> states_of(const int* numbers, int atoms, const std::vector<State>& said, const int* fragment, bool periodic);
std::string told(const State& state);  // "charge +1, multiplicity 2"

struct Level {
  std::string name;
  std::string kind;           // "mlp", "linear" or "gated"
  double constant = 0.0;      // eV a structure, whatever its size; of this head alone, see Model::constant
  bool error_bars = false;    // its energies come with a standard deviation
  int relative_to = -1;       // index of the level this head is a difference to (delta_of), or -1
  std::vector<int> elements;  // atomic numbers it was trained on
  std::vector<State> states;  // likewise; none where the file does not say: neutral ones, in the lowest multiplicity
  double of_states[3] = {};   // eV a fragment, times what state_terms gives; of this head alone
};

// Where the standard deviation of a level's energy comes from.
struct ErrorBars {
  // Of a head fitted by linear algebra: the variance is |factor^T phi|^2 + noise * atoms, phi being, for each of the level's
  // elements one behind the other, the sum of the features of its atoms less those of isolated ones, and their number.
  std::vector<double> factor;    // [size][size], lower triangle; size = elements * (F + 1), eV
  std::vector<double> isolated;  // [elements][F]
  double noise = 0.0;            // eV², an atom
  bool of_difference = false;    // the variance of the level it is relative to is added
  // Of an ensemble of heads, which are slices of one hidden layer: the spread of the members' energies times `calibration`.
  int members = 0;
  std::vector<double> hidden, bias, out;  // [H][F], [H], [H]
  std::vector<double> alone;              // [elements][members], energies of isolated atoms, in units of the head's scale
  double scale = 1.0, calibration = 1.0;
};

template <class T> struct Weights;  // packed for the kernels, kernels/stages.hpp
struct Domain;                      // what a model was trained on, kernels/domain.hpp

// Immutable, shared between workspaces and threads.
class Model {
 public:
  // A model.pt; the weights are read from its entry `mfmd.safetensors`, without torch.
  static std::shared_ptr<const Model> load(const std::string& path);
  // The bytes of such an entry. `origin` names them in messages.
  static std::shared_ptr<const Model> parse(std::string bytes, const std::string& origin);
  ~Model();

  const std::vector<Level>& levels() const;
  int level(const std::string& name) const;  // index; InputError naming the levels there are
  const std::vector<int>& elements() const;  // atomic numbers known to any level, ascending; a position in it is a slot
  const std::vector<State>& states() const;  // known to any level, (0, 1) first
  double cutoff() const;                     // Å
  double constant(int level) const;          // eV that the level's energy has in it whatever the structure
  double of_state(int level, const State& state) const;  // eV that it has in it for a fragment of this state
  const ErrorBars& error_bars(int level) const;  // of a level that has them
  const Domain* domain() const;              // null where the file does not say
  const std::string& metadata() const;       // JSON text
  const std::string& bytes() const;          // the safetensors file itself
  const std::string& sha256() const;         // of bytes(), hexadecimal
  // With rows of elements for each of the states, which begin with states(); kept as long as the model is.
  template <class T> const Weights<T>& weights(const std::vector<State>& states) const;

 private:
  Model();
  struct Data;
  std::unique_ptr<Data> data_;
};

template <> const Weights<float>& Model::weights<float>(const std::vector<State>& states) const;
template <> const Weights<double>& Model::weights<double>(const std::vector<State>& states) const;

// A host with a neighbour list of its own (LAMMPS) gives it in rows: neighbours of atom i are
// j[first[i]] ... j[first[i + 1] - 1], indices into atoms and ghosts; at least every pair within the cutoff, both ways.
struct HostPairs {
  const int* first;      // [atoms + 1]
  const int* j;          // [first[atoms]]
  std::int64_t version;  // another number whenever the list, or which atom an index means, is another
};

struct Structure {
  int atoms = 0;                      // those whose energies and forces are wanted
  const double* positions = nullptr;  // [atoms + ghosts][3], Å, wrapped or not
  const int* numbers = nullptr;       // [atoms + ghosts], atomic numbers
  const std::int64_t* ids = nullptr;  // [atoms + ghosts], what Outside calls them; null: by their places
  const double* cell = nullptr;       // [3][3], Å; read only in periodic directions
  bool periodic[3] = {false, false, false};
  std::vector<State> states;          // of the fragments, as state_of gives them; none: the one there is has (0, 1)
  const int* fragment = nullptr;      // [atoms + ghosts], which of them an atom belongs to; null: the first

  // Set only by a host that owns the periodic images itself, and may have the structure in parts: then neither Model::constant nor of_state is in any energy.
  int ghosts = 0;                     // copies of atoms, behind the atoms
  const HostPairs* pairs = nullptr;   // then cell and periodic are not read
  // Copies the rows of the owners into the rows of the ghosts: rows is [atoms + ghosts][width bytes]. Called equally often, whatever
  // atoms and ghosts there are, so that many processes can do it together.
  std::function<void(void* rows, std::size_t width)> fill_ghosts;
};

struct Term {  // the engine evaluates the sum of weight * E_head
  int head = 0;
  double weight = 1.0;  // a weight of zero asks for the head's energy alone
};

struct Request {
  std::vector<Term> terms;
  bool forces = true;
  bool virial = false;         // implies the reverse pass, as forces do
  bool atom_energies = false;
  bool atom_virials = false;   // as virial
  bool error_bars = false;
  bool domain = false;         // whether the structure is far outside what the model was trained on
  bool allow_unseen_state = false;  // a state that a head was not trained in is evaluated all the same
};

struct Outside {
  double by = 0.0;          // 0: it is not; else how far, so that parts of one structure can be compared
  std::int64_t atom = -1;   // where
  std::string sentence;     // what and where
};

struct Result {
  double energy = 0.0;                 // eV, the weighted sum
  std::vector<double> term_energies;   // eV, [terms], each head's own energy
  std::vector<double> term_errors;     // eV, [terms], standard deviation of each head's energy; NaN where it has no error bars
  std::vector<double> atom_energies;   // eV, [atoms], of the weighted sum
  std::vector<double> forces;          // eV/Å, [atoms][3]
  double virial[9] = {};               // eV, -dE/dstrain; stress = -virial / volume
  std::vector<double> atom_virials;    // eV, [atoms][9]; half of what a pair contributes goes to each of its atoms
  Outside outside;                     // nothing where the model file does not say what it was trained on
};

// Structures whose positions are on a CUDA device, for hosts that live there; pointers are the device's where they say so.
struct DeviceStructures {
  int systems = 1;
  const int* atoms = nullptr;         // [systems], host: how many each has
  const int* numbers = nullptr;       // [all atoms], host: atomic numbers
  const double* positions = nullptr;  // [all atoms][3], device, Å, wrapped or not
  const double* cells = nullptr;      // [systems][3][3], device, Å; may be null where nothing is periodic
  bool periodic[3] = {false, false, false};
  const std::vector<State>* states = nullptr;  // [systems], host: of the fragments of each, as in Structure; null: all are (0, 1)
  const int* fragment = nullptr;      // [all atoms], host: which of its system's; null: the first
  void* stream = nullptr;             // cudaStream_t in whose order everything happens
};
struct DeviceResults {
  double* energies = nullptr;  // [1 + terms][systems], device, eV: the weighted sum, then each head's own
  double* forces = nullptr;    // [all atoms][3], device, eV/Å; null: none
  double* virials = nullptr;   // [systems][3][3], device, eV; null: none
};

// tf32: single, but the tensor cores of a CUDA device, which round factors to ten bits, do the products of the backbone but its read-out; not on the CPU.
enum class Precision { single_, double_, tf32 };

struct Options {
  Precision precision = Precision::single_;
  int threads = 1;
  bool tables = true;  // radial functions from tables; false evaluates them exactly, the reference
  double skin = 1.0;   // Å; a list is rebuilt when an atom has moved more than half of it
  int cuda = -1;       // number of a CUDA device; -1: the CPU
};

// Buffers and neighbour list of one caller. Not for two threads at once; results never depend on its history.
class Workspace {
 public:
  Workspace(std::shared_ptr<const Model> model, Options options);
  ~Workspace();
  const Result& evaluate(const Structure& structure, const Request& request);
  // Many structures: on a CUDA device side by side, none of them with the host's pairs; on the CPU one after the other.
  const std::vector<Result>& evaluate(const std::vector<Structure>& structures, const Request& request);
  // The same in order of a CUDA stream, without waiting for it: nothing of it is done when this returns. Only the first call for structures of other
  // numbers waits, to see how much room they need; later on, where there is not enough, or a structure cannot be evaluated, the results are not numbers,
  // and the next call makes room or throws. May be recorded in a CUDA graph after such a first call: then it returns true, and the workspace belongs to
  // the graph, which has its addresses. What was asked for before must have ended by the time that the graph runs.
  bool enqueue(const DeviceStructures& structures, const Request& request, const DeviceResults& results);
  std::int64_t rebuilds() const;  // neighbour lists built so far, but for those of enqueue
  std::size_t ghost_width() const;  // bytes of a row of fill_ghosts, at most
  const std::map<std::string, double>& stage_times() const;  // seconds spent in each stage so far

  struct Data;

 private:
  std::unique_ptr<Data> data_;
};

std::string symbol(int atomic_number);
int grade(double by);     // of Outside: 0 within, and one more each time that it is twice as far, or of a worse kind
int cuda_devices();  // that this build of the engine can use; 0 without CUDA
bool has_cuda();     // whether this build has the CUDA engine
std::string instruction_set();  // of the kernels on the CPU: the best the machine has, or a lesser one that MFMD_SIMD names
std::vector<std::string> instruction_sets();  // that the machine has, the best first: avx512, avx2, generic; on Arm sve512 or sve256, neon

// All pairs with |D| < cutoff, D = R[j] - R[i] + S @ cell, in (i, j, S) order; full and symmetric.
struct NeighborList {
  std::vector<int> i, j, shifts;  // [pairs], [pairs], [pairs][3]
  std::vector<double> vectors;    // [pairs][3]
};
NeighborList neighbor_list(const Structure& structure, double cutoff);

}  // namespace mfmd
