// The stages of one evaluation: packed weights, arrays and their shapes, and the functions that work on a range of atoms.
//
// F channels, C = (rank + 1)^2 components, R = rank + 1 parts, K radial functions. Features are [atom][F / 16][C][16]:
// component-major within a slab of 16 channels, so that what a gather reads of a neighbour at a time is one run of memory
// (rows of F channels lie at strides that fall on few sets of the cache).
// Every function gathers: it writes only rows of the atoms in [begin, end), whatever it reads.
#pragma once

#include <cstddef>

#include "basis.hpp"

namespace mfmd {

constexpr int kMaxParts = 3, kMaxComponents = 9;
constexpr int kSlab = 16;       // channels that a gather carries at a time
constexpr int kAtomBlock = 12;  // atoms whose matrix products run together: their rows, 1, 3 and 5 an atom, fill tiles of six
constexpr int kPairBlock = 32;  // neighbours whose radial functions are evaluated together, exactly
constexpr int kCoefficients = 6;  // of the polynomials in the tables

template <class T> struct Dense {  // y = x w + b
  int in = 0, out = 0;
  const T* w = nullptr;   // [in][out]
  const T* wt = nullptr;  // [out][in], for the reverse pass
  const T* b = nullptr;   // [out], or null
};
template <class T> struct Norm {
  const T *weight = nullptr, *bias = nullptr;
};
template <class T> struct LayerWeights {
  Dense<T> radial[3];        // K -> F -> 2F -> RF
  Dense<T> mix_in[kMaxParts], mix_out[kMaxParts];
  const T* self = nullptr;   // [R][F], radial functions of the self pair (d = 0); zero of a backbone without
  const T* table = nullptr;  // [F / 16][intervals][kCoefficients][R][16], tables.hpp
};
constexpr int kMaxHidden = 4;
template <class T> struct Perceptron {  // F -> H … -> 1, SiLU between
  int layers = 0;                // hidden ones
  Dense<T> hidden[kMaxHidden], out;
};
template <class T> struct HeadWeights {
  Perceptron<T> value;
  Perceptron<T> gate;            // the value is multiplied by its sigmoid; no layers: it is not
  const T* linear = nullptr;     // [slots][F], of a linear head instead of the two
  bool repels = true;            // the nuclei's repulsion is in its energy; not of a head that is relative to another
  double scale = 1.0;
  const double* e0 = nullptr;    // [slots], eV; head(isolated atom) is folded in
};
template <class T> struct Weights {
  int F = 0, K = 0, rank = 2, R = 3, C = 9, slots = 0;
  double cutoff = 0.0;
  bool tf32 = false;                           // factors of products rounded to TF32, but the read-out's; on a CUDA device alone
  int intervals = 0;                           // of the radial tables
  RadialBasis basis;
  bool own_message = false;                    // a message is the atom's own tensor times the sum of its pairs' weights, not a sum over neighbours' tensors
  bool readout_silu = true;
  double repulsion = 0.0;                      // its cutoff; 0: there is none
  const double* charge = nullptr;              // [slots], of the nuclei
  const T* factor = nullptr;                   // [slots], what products are multiplied by in a charged structure; null: nothing
  const T *first = nullptr, *second = nullptr; // [slots][F], whose sum is the weight of a pair: of its atom and of the neighbour
  const T* self_embedding = nullptr;           // [slots][F], the self pair's share of component I
  Dense<T> embedding_radial;                   // K -> RF
  const T* embedding_table = nullptr;          // [F / 16][intervals][kCoefficients][R][16]
  Norm<T> embedding_norm;
  Dense<T> gate[2];                            // F -> 2F -> RF
  Dense<T> embedding_mix[kMaxParts];
  int n_layers = 0;
  const LayerWeights<T>* layers = nullptr;
  Norm<T> readout_norm;
  Dense<T> readout;                            // RF -> F
  int n_heads = 0;
  const HeadWeights<T>* heads = nullptr;
};

template <class T> struct Pairs {  // d < cutoff, in (i, j, S) order
  const int* first;  // [atoms + 1]
  const int* half;   // [atoms], where in its row (j, S) > (i, 0) begins: every pair of atoms is there once, in one of the two rows
  const int* j;      // [pairs]
  const T* d;        // [pairs]
  const T* basis;    // [pairs][9], components of I, A(u), S(u) of u = D / d
  const int* interval;  // [pairs], of the radial tables; null: radial functions are evaluated exactly
  const T* place;    // [pairs][2], where in the interval, and what a slope by that is multiplied by for one by d
};

template <class T> struct Seed {  // what the read-out does with one head
  int head = 0;
  T weight = 0;               // of its energy in the sum
  double* energies = nullptr;  // [atoms], its own, E0 included
};

// Numbers an atom that embedding_mix keeps for its reverse.
template <class T> inline std::size_t kept_gates(const Weights<T>& w) { return static_cast<std::size_t>((3 + 2 * w.R) * w.F + kSlab); }

constexpr int kWidestHead = 7;  // hidden layer of a head, in multiples of F; layers of a gated one are no wider than F
// Scratch of one worker, in elements of T: the largest any stage takes.
template <class T> inline std::size_t scratch_size(const Weights<T>& w) {
  const std::size_t F = static_cast<std::size_t>(w.F), K = static_cast<std::size_t>(w.K) + 15;
  const std::size_t pairs = kPairBlock * (2 * K + 6 * F + 2 * kMaxParts * F);
  const std::size_t atoms = kAtomBlock * F * (6 * kMaxParts + 2 * kMaxComponents);
  return pairs > atoms ? pairs : atoms;
}

template <class T> struct TrainingMaps;  // kernels/training.hpp

// One table per instruction set; `stages<T>()` picks the best the machine has.
template <class T> struct Stages {
  const char* name;

  // raw[i] = sum over neighbours of element-pair weights, radial functions and I, A(u), S(u).
  void (*embedding_gather)(const Weights<T>&, const Pairs<T>&, const int* slot, T* raw, int begin, int end, T* scratch);
  // x[i] = gates(|raw|^2) * mixed, mixed = mix(raw); kept: [atoms][kept_gates], what the reverse needs of the gates.
  void (*embedding_mix)(const Weights<T>&, const T* raw, T* x, T* mixed, T* kept, int begin, int end, T* scratch);
  // y[i] = mix_in(x / (|x|^2 + 1)).
  void (*mixing)(const Weights<T>&, int l, const T* x, T* y, int begin, int end, T* scratch);
  // m[i] = sum over neighbours and self of radial * y[j]; of own messages sums[i] * y[i], sums: [atoms][F / 16][R][16] of radial alone.
  void (*message)(const Weights<T>&, int l, const Pairs<T>&, const T* y, T* m, int begin, int end, T* scratch);
  void (*own_message)(const Weights<T>&, int l, const Pairs<T>&, const T* y, T* m, T* sums, int begin, int end, T* scratch);
  // p = c {m, y}, dx = mix_out(p / (|p|^2 + 1)), next = x / (|x|^2 + 1) + dx + c dx^2, where c is the factor of the slot, or 1.
  void (*product)(const Weights<T>&, int l, const int* slot, const T* x, const T* y, const T* m, T* dx, T* next, int begin, int end, T* scratch);
  // Energies of the heads, and where ax is given their weighted gradient with respect to x; features [atoms][F], or null.
  void (*readout)(const Weights<T>&, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, T* ax, T* features, int begin, int end, T* scratch);

  // The reverse, stage by stage. slope: [pairs], dE/dd, which message_reverse and embedding_gather_reverse
  // add to, and turn: [pairs][3], dE/du of each pair of atoms but for a multiple of u, both directions counted, where pairs.half has it. ax is updated in place from d/d next to d/d x over the last two.
  // Of own messages, whose sums are given, ay is then that of y through them too, and asums the adjoint of sums; both are null otherwise.
  void (*product_reverse)(const Weights<T>&, int l, const int* slot, const T* y, const T* m, const T* dx, const T* ax, T* am, T* ay, const T* sums, T* asums, int begin, int end, T* scratch);
  void (*message_reverse)(const Weights<T>&, int l, const Pairs<T>&, const T* y, const T* am, T* ay, double* slope, int begin, int end, T* scratch);
  void (*own_message_reverse)(const Weights<T>&, int l, const Pairs<T>&, const T* asums, double* slope, int begin, int end, T* scratch);
  void (*mixing_reverse)(const Weights<T>&, int l, const T* x, const T* ay, T* ax, int begin, int end, T* scratch);
  void (*embedding_mix_reverse)(const Weights<T>&, const T* raw, const T* mixed, T* kept, const T* ax, T* araw, int begin, int end, T* scratch);
  void (*embedding_gather_reverse)(const Weights<T>&, const Pairs<T>&, const int* slot, const T* araw, double* slope, double* turn, int begin, int end, T* scratch);

  const TrainingMaps<T>* training;
};

template <class T> const Stages<T>& stages();

}  // namespace mfmd
