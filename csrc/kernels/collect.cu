// From what the reverse pass leaves of each pair of atoms to forces, virials and sums: in double and in an order that nothing but the input decides.
#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128, kSum = 256;

// dE/dD of each pair of atoms, both directions counted; one warp a row.
template <class T> __global__ void gradients(List l, int slabs, const T* slope, const T* turn, double* gradient) {
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

__global__ void sums_of(List l, const int* row_of, const double* values, std::int64_t between, int stride, double* sums) {
  double* partial = shared<double>();
  const int t = static_cast<int>(threadIdx.x), system = static_cast<int>(blockIdx.x), warps = kSum / 32;
  const double* of = values + static_cast<std::int64_t>(blockIdx.y) * between;
  double sum = 0.0;
  for (int i = l.begin[system] + t; i < l.begin[system + 1]; i += kSum) sum += of[static_cast<std::int64_t>(row_of ? row_of[i] : i) * stride];
  sum = warp_sum(sum);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  if (t != 0) return;
  sum = 0.0;
  for (int w = 0; w < warps; ++w) sum += partial[w];
  sums[static_cast<std::size_t>(blockIdx.y) * l.systems + system] = sum;
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
  launch(gradients<T>, blocks, kBlock, 0, stream, l, slabs, slope, turn, gradient);
  launch(of_atoms, blocks, kBlock, 0, stream, l, gradient, forces, atom_virials);
}
template void collect<float>(const List&, int, const float*, const float*, double*, double*, double*, cudaStream_t);
template void collect<double>(const List&, int, const double*, const double*, double*, double*, double*, cudaStream_t);

void sum(const List& l, const int* row_of, const double* values, int quantities, std::int64_t between, int stride, double* sums, cudaStream_t stream) {
  launch(sums_of, dim3(static_cast<unsigned>(l.systems), static_cast<unsigned>(quantities)), kSum, kSum / 32 * sizeof(double), stream, l, row_of, values, between, stride, sums);
}

void deliver(const List& l, const Delivery& d, cudaStream_t stream) {
  const int threads = l.atoms > l.systems ? l.atoms : l.systems;
  launch(deliveries, dim3(static_cast<unsigned>((threads + kBlock - 1) / kBlock)), kBlock, 0, stream, l, d);
}

}  // namespace cuda
}  // namespace mfmd
