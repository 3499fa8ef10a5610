// From what the reverse pass leaves of each pair of atoms to forces, virials and sums: in double and in an order that nothing but the input decides.
#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128, kSum = 256;

// dE/dD of each pair of atoms, both directions counted; one warp a row.
template <class T> __global__ void gradients(List l, int slabs, const T* slope, const T* turn, double* gradient) {
  wait_for_what_is_before();
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= l.atoms) return;
  for (int k = l.half[row] + lane; k < l.count[row]; k += 32) {
    const std::size_t p = static_cast<std::size_t>(row) * l.capacity + k;
    double along = 0.0, du[3] = {};
    for (int s = 0; s < slabs; ++s) {
      const std::size_t at = static_cast<std::size_t>(s) * l.atoms * l.capacity + p;
      along += slope[at];
      for (int a = 0; a < 3; ++a) du[a] += turn[3 * at + a];
    }
    const double *D = l.vectors + 3 * p, r = l.distances[p];
    along -= (du[0] * D[0] + du[1] * D[1] + du[2] * D[2]) / (r * r);
    for (int a = 0; a < 3; ++a) gradient[3 * p + a] = (along * D[a] + du[a]) / r;
  }
}

// Where the reverse of the pair from atom i, the entry `to`, is in the upper half of the neighbour's row.
__device__ std::size_t reversed(const List& l, int i, const Entry& to, int row) {
  const std::size_t begin = static_cast<std::size_t>(row) * l.capacity;
  const Entry wanted{i, {-to.s[0], -to.s[1], -to.s[2]}};
  int high = l.count[row] - 1, low = l.half[row] < high ? l.half[row] : high;
  if (high < 0) return begin;  // only where a row was cut short for want of room
  while (low < high) {
    const int middle = (low + high) / 2;
    if (before(l.entries[begin + middle], wanted)) low = middle + 1;
    else high = middle;
  }
  return begin + low;
}

// One warp an atom: over its pairs, the lower half from the rows of its neighbours.
__global__ void of_atoms(List l, const double* gradient, double* forces, double* atom_virials) {
  wait_for_what_is_before();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (i >= l.atoms) return;
  const int row = l.row_of[i];
  double force[3] = {}, virial[9] = {};
  for (int k = lane; k < l.count[row]; k += 32) {
    const std::size_t p = static_cast<std::size_t>(row) * l.capacity + k;
    const bool lower = k < l.half[row];
    const double *g = gradient + 3 * (lower ? reversed(l, i, l.entries[p], l.j[p]) : p), sign = lower ? -1.0 : 1.0;
    for (int a = 0; a < 3; ++a) {
      force[a] += sign * g[a];
      for (int b = 0; b < 3; ++b) virial[3 * b + a] -= 0.5 * l.vectors[3 * p + b] * (sign * g[a]);
    }
  }
  for (double& f : force) f = warp_sum(f);
  for (double& v : virial) v = warp_sum(v);
  if (lane != 0) return;
  for (int a = 0; a < 3; ++a) forces[3 * static_cast<std::size_t>(i) + a] = force[a];
  for (int k = 0; k < 9 && atom_virials; ++k) atom_virials[9 * static_cast<std::size_t>(i) + k] = virial[k];
}

__device__ double summand(const List& l, const Summands& s, int q, int i) {
  return q < s.heads ? s.energies[static_cast<std::size_t>(q) * l.atoms + l.row_of[i]] : s.atom_virials[9 * static_cast<std::size_t>(i) + (q - s.heads)];
}
// One block: the sum of a piece that begins at an atom, the same in every thread.
__device__ double sum_of_piece(const List& l, const Summands& s, int q, int begin, int end) {
  const int until = end - begin < static_cast<int>(kPiece) ? end : begin + static_cast<int>(kPiece);
  double sum = 0.0;
  for (int i = begin + static_cast<int>(threadIdx.x); i < until; i += kSum) sum += summand(l, s, q, i);
  return block_sum(sum, shared<double>());
}

// One block a system: pieces one after the other, added up as below.
__global__ void sums_of(List l, Summands s, double* sums) {
  wait_for_what_is_before();
  const int lane = static_cast<int>(threadIdx.x) % 32, system = static_cast<int>(blockIdx.x), q = static_cast<int>(blockIdx.y), end = l.begin[system + 1];
  double sum = 0.0;
  for (int begin = l.begin[system], piece = 0; begin < end; begin += kPiece, ++piece) {
    const double of_piece = sum_of_piece(l, s, q, begin, end);
    if (piece % 32 == lane) sum += of_piece;
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) sums[static_cast<std::size_t>(q) * l.systems + system] = sum;
}

// One block a piece of the only system …
__global__ void pieces_of_one(List l, Summands s, double* pieces) {
  wait_for_what_is_before();
  const int q = static_cast<int>(blockIdx.y);
  const double sum = sum_of_piece(l, s, q, static_cast<int>(blockIdx.x * kPiece), l.atoms);
  if (threadIdx.x == 0) pieces[static_cast<std::size_t>(q) * gridDim.x + blockIdx.x] = sum;
}
// … and one warp for the sum of all: lane k adds up pieces k, k + 32 …
__global__ void sums_of_pieces(int n, const double* pieces, double* sums) {
  wait_for_what_is_before();
  const double* of = pieces + static_cast<std::size_t>(blockIdx.x) * n;
  double sum = 0.0;
  for (int piece = static_cast<int>(threadIdx.x); piece < n; piece += 32) sum += of[piece];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void deliveries(List l, Delivery d) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const Verdict& v = *l.verdict;
  const double trust = v.refused || v.overlap || v.most[0] > l.reach_capacity || v.most[1] > l.capacity ? static_cast<double>(NAN) : 0.0;
  for (int a = 0; a < 3 && d.to_forces && i < l.atoms; ++a) d.to_forces[3 * static_cast<std::size_t>(i) + a] = d.forces[3 * static_cast<std::size_t>(i) + a] + trust;
  if (i >= l.systems) return;
  if (trust != 0.0) l.grids[i].begin = -1;  // nothing is kept of such a step: the next one makes its list anew
  for (int t = 0; t <= d.terms; ++t) {
    const double* row = d.combination + t * d.heads;
    double energy = trust + d.constants[static_cast<std::size_t>(t) * l.systems + i];
    for (int q = 0; q < d.heads; ++q) energy += row[q] * d.sums[static_cast<std::size_t>(q) * l.systems + i];
    d.energies[static_cast<std::size_t>(t) * l.systems + i] = energy;
  }
  for (int k = 0; k < 9 && d.virials; ++k) d.virials[9 * static_cast<std::size_t>(i) + k] = d.sums[static_cast<std::size_t>(d.heads + k) * l.systems + i] + trust;
}

}  // namespace

template <class T>
void collect(const List& l, int slabs, const T* slope, const T* turn, double* gradient, double* forces, double* atom_virials, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((l.atoms + kBlock / 32 - 1) / (kBlock / 32)));
  launch<Behind::kernel>(gradients<T>, blocks, kBlock, 0, stream, l, slabs, slope, turn, gradient);
  launch<Behind::kernel>(of_atoms, blocks, kBlock, 0, stream, l, gradient, forces, atom_virials);
}
template void collect<float>(const List&, int, const float*, const float*, double*, double*, double*, cudaStream_t);
template void collect<double>(const List&, int, const double*, const double*, double*, double*, double*, cudaStream_t);

void sum(const List& l, const Summands& s, double* pieces, double* sums, cudaStream_t stream) {
  const auto quantities = static_cast<unsigned>(s.heads + (s.atom_virials ? 9 : 0));
  const std::size_t n = pieces_of(static_cast<std::size_t>(l.atoms)), room = kSum / 32 * sizeof(double);
  if (l.systems > 1 || n == 1) {
    launch<Behind::kernel>(sums_of, dim3(static_cast<unsigned>(l.systems), quantities), kSum, room, stream, l, s, sums);
    return;
  }
  launch<Behind::kernel>(pieces_of_one, dim3(static_cast<unsigned>(n), quantities), kSum, room, stream, l, s, pieces);
  launch<Behind::kernel>(sums_of_pieces, dim3(quantities), 32, 0, stream, static_cast<int>(n), pieces, sums);
}

void deliver(const List& l, const Delivery& d, cudaStream_t stream) {
  const int threads = l.atoms > l.systems ? l.atoms : l.systems;
  launch(deliveries, dim3(static_cast<unsigned>((threads + kBlock - 1) / kBlock)), kBlock, 0, stream, l, d);
}

}  // namespace cuda
}  // namespace mfmd
