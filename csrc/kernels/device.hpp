// The stages on a CUDA device: the twin of stages.hpp. Arrays have the shapes given there, and every function works on all atoms, in order of
// its stream, and gathers: no kernel adds to what another thread writes. What an atom goes through between two gathers is one kernel, but for the
// read-out, which is one with what follows it.
//
// The list differs in one thing: rows have room for `capacity` neighbours each, so that no step waits for a count.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "domain.hpp"
#include "entries.hpp"
#include "stages.hpp"

namespace mfmd {
namespace cuda {

template <class T> struct Pairs {  // d < cutoff; the pairs of row i begin at i * capacity, in (j, S) order
  int capacity;
  const int* count;  // [rows]
  const int* half;   // [rows], how many of them have (j, S) < (i, 0)
  const int* j;      // [rows][capacity], rows
  const T* basis;    // [rows][capacity][9]
  const int* interval;  // [rows][capacity]
  const T* place;    // [rows][capacity][2]
};

// Of one system in a batch, made on the device: its atoms, and the bins they are sorted into.
struct Grid {
  int begin, end;                        // its atoms
  int periodic, bins[3], span[3];        // a bit each; span: bins to look at on either side
  double given[9];                       // the cell it was made for
  double cell[9], inverse[9], width[3];  // rows; fractional = position @ inverse; of a bin, in fractional coordinates
};

// What a step finds out on its way; the host reads it after the results.
struct Verdict {
  int stale;    // there is no list, or it does not reach far enough any more
  int most[2];  // neighbours of any row, within reach (where the list was built) and within the cutoff
  int refused;  // a flat cell, too many within reach, a position that is not finite or too far away: there is no list
  int overlap;  // atoms closer than the tables begin
};

constexpr int kMoreBins = 8;  // than atoms there are at most

// The neighbour list: arrays of one workspace.
struct List {
  int atoms, ghosts, systems, bins;  // ghosts: of the host, behind the atoms; bins: at most; 0 where each system is one bin
  int reach_capacity, capacity;  // neighbours that a row has room for: within reach, and within the cutoff
  double cutoff, skin, closest;
  const double *positions, *cells;  // [atoms + ghosts][3], [systems][9]
  const int *begin, *periodic;      // [systems + 1]: atoms of each system; [systems]: a bit for each direction
  const int *system, *kind;         // [atoms], [atoms + ghosts]: slot of its element and state
  const std::int64_t* ids;          // [atoms + ghosts], what the host calls them; null: by their places
  Grid* grids;                      // [systems]; another cell than it was given makes the list stale
  double* built;            // [atoms][3], where the list was built
  int *home, *wrap;         // [atoms], [atoms][3]: bin, and cells away from the first
  int *start, *cursor;  // [bins + 1], [bins]: rows of each bin
  int *order, *row_of, *slot;  // [rows], the atom of a row (while there is none yet, sums of pieces of start); [atoms]; [rows]; ghosts have a place behind the rows
  Entry *found, *reached;   // [rows][reach_capacity]: as they come, and sorted by (j, S)
  int* reached_count;       // [rows]
  Entry* entries;           // [rows][capacity], compacted to d < cutoff
  int *count, *half, *j;    // as in Pairs
  double *vectors, *distances;  // [rows][capacity][3], [rows][capacity]
  Verdict* verdict;
};

// Begins a step: empties the verdict, brings the list up to date where it is not (all decided on the device), and compacts it.
void neighbors(const List&, cudaStream_t);
// As HostPairs has them, on the device.
struct HostRows {
  const int *first, *j;
};
// The same of a host's own pairs: where they are others than before, rows are made of them, in order of atoms; and then compacted.
void neighbors(const List&, const HostRows&, bool anew, cudaStream_t);
// basis, interval and place of the compacted pairs.
template <class T> void radial(const List&, int intervals, T* basis, int* interval, T* place, cudaStream_t);

template <class T> void embedding_gather(const Weights<T>&, const Pairs<T>&, const int* slot, T* raw, int rows, cudaStream_t);
// y: what the first layer's messages are made of; null where there is no layer.
template <class T> void embedding_mix(const Weights<T>&, const T* raw, T* x, T* mixed, T* kept, T* y, int rows, cudaStream_t);
template <class T> void message(const Weights<T>&, int l, const Pairs<T>&, const T* y, T* m, int rows, cudaStream_t);
template <class T> void own_message(const Weights<T>&, int l, const Pairs<T>&, const T* y, T* m, T* sums, int rows, cudaStream_t);
// next_y: as y, of the layer that follows.
template <class T> void product(const Weights<T>&, int l, const int* slot, const T* x, const T* y, const T* m, T* dx, T* next, T* next_y, int rows, cudaStream_t);

// Where the reverse pass goes on with the adjoint of the result of layer l, up to its messages; l = -1: of the embedding, up to what it gathered.
template <class T> struct Leaving {
  int l;
  const T *y, *m, *dx;          // of the layer
  T *am, *ay;                   // adjoints of m (and of what the embedding gathered) and y
  const T *raw, *mixed, *kept;  // of the embedding
  const T* sums;                // of own messages
  T* asums;
  const int* slot;
};
// How much room in shared memory a head takes for each atom.
template <class T> int room_of(const HeadWeights<T>&);
// seeds is on the device; room: the most that one of their heads takes; ax null: no reverse pass.
template <class T>
void readout(const Weights<T>&, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, int room, T* ax, T* features, const Leaving<T>&, int rows, cudaStream_t);
// The nuclei's repulsion: to the energies of the heads that have it, and where slope is given (its first slab) to that of the upper half of pairs.
template <class T> void repel(const Weights<T>&, const List&, const Seed<T>* seeds, int n_seeds, T* slope, cudaStream_t);
// How far each atom is outside what the model was trained on, from its features: [rows].
template <class T> void find_excess(const List&, const Domain&, const T* features, Excess*, cudaStream_t);
// slope: [F / 16][rows][capacity], a sum for each slab of channels; added to, but set by the first, the last layer's.
template <class T> void own_message_reverse(const Weights<T>&, int l, const Pairs<T>&, const T* asums, T* slope, bool first, int rows, cudaStream_t);
template <class T> void message_reverse(const Weights<T>&, int l, const Pairs<T>&, const T* y, const T* am, T* ay, T* slope, bool first, int rows, cudaStream_t);
template <class T> void mixing_reverse(const Weights<T>&, int l, const T* x, const T* ay, T* ax, const Leaving<T>&, int rows, cudaStream_t);
// turn: [F / 16][rows][capacity][3], of each pair of atoms as in stages.hpp
template <class T> void embedding_gather_reverse(const Weights<T>&, const Pairs<T>&, const int* slot, const T* araw, T* slope, T* turn, bool first, int rows, cudaStream_t);

// From slopes and turns to dE/dD of each pair of atoms (gradient: [rows][capacity][3], where half has it), and from there to forces [atoms][3] and,
// unless null, virials of atoms [atoms][9], of which each end of a pair has half.
template <class T> void collect(const List&, int slabs, const T* slope, const T* turn, double* gradient, double* forces, double* atom_virials, cudaStream_t);
// What is summed over the atoms of each system: energies of heads, [heads][rows], then virials of atoms, [atoms][9], unless null.
struct Summands {
  const double* energies;
  int heads;
  const double* atom_virials;
};
// Sums of so many atoms are made first and then added up, in an order that only the size of a system decides.
constexpr std::size_t kPiece = 1024;
constexpr std::size_t pieces_of(std::size_t atoms) { return (atoms + kPiece - 1) / kPiece; }
// sums: [heads and 9][systems]; pieces: room for [heads and 9][pieces_of(atoms)].
void sum(const List&, const Summands&, double* pieces, double* sums, cudaStream_t);
// What a host on the device gets: energies[t][system] = combination[t] · (sums of the heads, 1), forces and virials; not a number where the verdict is that
// the step cannot be trusted.
struct Delivery {
  const double *combination, *constants;        // [terms + 1][heads], [terms + 1][systems]
  const double *sums, *forces;                  // [heads + 9][systems], [atoms][3]
  double *energies, *to_forces, *virials;       // [terms + 1][systems], the weighted sum first; [atoms][3]; [systems][9]; each but the first may be null
  int terms, heads;
};
void deliver(const List&, const Delivery&, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
