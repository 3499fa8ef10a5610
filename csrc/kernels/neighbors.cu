// The neighbour list on the device: whether it is stale, bins, rows, and every step's compaction. All kernels are launched every step and those
// that build return at once while the list holds, so that no step waits for the host.
//
// Bins of periodic directions divide the cell. Along the others space is cut into equal slices, and slice k is in bin k modulo their number:
// no bounding box is needed, and atoms that share a bin from afar are told apart by their distance.
#include "cuda.hpp"
#include "lattice.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128, kRowsOfBlock = kBlock / 32, kScan = 1024;

// A list is built anew; one whose cell is flat or whose atoms are nowhere is not.
__device__ bool building(const List& l) { return l.verdict->stale && !l.verdict->refused; }
__device__ int thread() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// The bins of one system; false for a cell that is flat. Where `one` is set, all atoms are in one bin, and images are looked for in all cells
// within reach.
__device__ bool find_grid(const double* cell, int periodic, int begin, int end, double reach, bool one, Grid& g) {
  Lattice l;
  const bool wrapped[3] = {(periodic & 1) != 0, (periodic & 2) != 0, (periodic & 4) != 0};
  if (find_lattice(cell, wrapped, l) >= 0) return false;
  g.begin = begin, g.end = end, g.periodic = periodic;
  int largest = 0;
  for (int k = 0; k < 3; ++k) {
    if (wrapped[k] && reach > 100.0 * l.height[k]) return false;
    const double most = one ? 1.0 : wrapped[k] ? floor(l.height[k] / reach) : cbrt(static_cast<double>(end - begin));
    g.bins[k] = static_cast<int>(fmin(1024.0, fmax(1.0, most)));
  }
  while (static_cast<double>(g.bins[0]) * g.bins[1] * g.bins[2] > kMoreBins + (end - begin)) {  // a sparse box needs no more bins than atoms
    for (int k = 0; k < 3; ++k)
      if (g.bins[k] > g.bins[largest]) largest = k;
    g.bins[largest] = (g.bins[largest] + 1) / 2;
  }
  for (int k = 0; k < 3; ++k) {
    if (wrapped[k]) {
      g.span[k] = 1 + static_cast<int>(reach * g.bins[k] / l.height[k] * (1 + 1e-12));
      g.width[k] = 1.0 / g.bins[k];
    } else {
      if (g.bins[k] < 3) g.bins[k] = 1;  // with two, the slices on either side would be the same bin
      g.span[k] = g.bins[k] == 1 ? 0 : 1;
      g.width[k] = reach * (1 + 1e-9) / l.height[k];
    }
  }
  for (int k = 0; k < 9; ++k) g.cell[k] = l.cell[k], g.inverse[k] = l.inverse[k];
  return true;
}

// Whether an atom has left the list's reach, and whether a cell is another than it was made for.
__global__ void look(List l) {
  const int i = thread();
  if (i < l.systems) {
    const double* cell = l.cells + 9 * static_cast<std::size_t>(i);
    Grid& g = l.grids[i];
    bool same = g.begin == l.begin[i] && g.end == l.begin[i + 1] && g.periodic == l.periodic[i];
    for (int k = 0; k < 9; ++k) same = same && (!(l.periodic[i] >> k / 3 & 1) || g.given[k] == cell[k]);
    if (!same) {
      Grid now{};
      for (int k = 0; k < 9; ++k) now.given[k] = cell[k];
      if (find_grid(cell, l.periodic[i], l.begin[i], l.begin[i + 1], l.cutoff + l.skin, l.bins == 0, now)) l.verdict->stale = 1, g = now;
      else l.verdict->refused = 1;
    }
  }
  if (i >= l.atoms) return;
  const double *r = l.positions + 3 * static_cast<std::size_t>(i), *then = l.built + 3 * static_cast<std::size_t>(i);
  double square = 0.0;
  for (int a = 0; a < 3; ++a) square += (r[a] - then[a]) * (r[a] - then[a]);
  if (!isfinite(r[0]) || !isfinite(r[1]) || !isfinite(r[2])) l.verdict->refused = 1;
  else if (4.0 * square > l.skin * l.skin) l.verdict->stale = 1;
}

__global__ void clear(List l) {
  if (building(l) && thread() <= l.bins) l.start[thread()] = 0;
}

// Bin of an atom, and how many cells it is away from the first.
__global__ void place(List l) {
  const int i = thread();
  if (i >= l.atoms || !building(l)) return;
  const Grid& g = l.grids[l.system[i]];
  const double* r = l.positions + 3 * static_cast<std::size_t>(i);
  int bin = 0;
  for (int k = 0; k < 3; ++k) {
    double f = r[0] * g.inverse[k] + r[1] * g.inverse[3 + k] + r[2] * g.inverse[6 + k];
    double turns = (g.periodic >> k & 1) ? floor(f) : 0.0;
    if (!(fabs(turns) <= 1e8)) l.verdict->refused = 1, f = turns = 0.0;
    const double slice = floor((f - turns) / g.width[k]);
    const double wrapped = (g.periodic >> k & 1) ? slice : slice - g.bins[k] * floor(slice / g.bins[k]);
    bin = bin * g.bins[k] + static_cast<int>(fmax(0.0, fmin(wrapped, g.bins[k] - 1.0)));
    l.wrap[3 * static_cast<std::size_t>(i) + k] = static_cast<int>(turns);
    l.built[3 * static_cast<std::size_t>(i) + k] = r[k];
  }
  l.home[i] = bin;
  if (l.bins) atomicAdd(l.start + bin + 1, 1);
  else l.order[i] = l.row_of[i] = i;
}

// start: running sums of what it holds; one block.
__global__ void scan(List l) {
  if (!building(l)) return;
  int* sums = shared<int>();
  const int t = static_cast<int>(threadIdx.x), share = (l.bins + kScan) / kScan, begin = t * share, end = begin + share < l.bins + 1 ? begin + share : l.bins + 1;
  int own = 0;
  for (int b = begin; b < end; ++b) own += l.start[b];
  sums[t] = own;
  __syncthreads();
  for (int step = 1; step < kScan; step *= 2) {
    const int left = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += left;
    __syncthreads();
  }
  int sum = sums[t] - own;
  for (int b = begin; b < end; ++b) {
    sum += l.start[b];
    l.start[b] = sum;
    if (b < l.bins) l.cursor[b] = sum;
  }
}

// Which atom of a bin comes first, the threads decide. It shows in no result: neighbours are sorted by atoms, and sums over rows go by atoms.
__global__ void fill(List l) {
  const int i = thread();
  if (i >= l.atoms || !building(l)) return;
  const int row = atomicAdd(l.cursor + l.home[i], 1);
  l.order[row] = i;
  l.row_of[i] = row;
}

// One warp a row: everything within reach, as it is found in the bins around, then sorted by rank.
__global__ void __launch_bounds__(kBlock) rows(List l) {
  const int row = thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= l.atoms || !building(l)) return;
  const int i = l.order[row];
  const Grid& g = l.grids[l.system[i]];
  const double *ri = l.positions + 3 * static_cast<std::size_t>(i), reach = l.cutoff + l.skin;
  const int* wrap = l.wrap + 3 * static_cast<std::size_t>(i);
  const int home[3] = {l.home[i] / (g.bins[1] * g.bins[2]), l.home[i] / g.bins[2] % g.bins[1], l.home[i] % g.bins[2]};
  Entry* found = l.found + static_cast<std::size_t>(row) * l.reach_capacity;
  int n = 0, step[3];
  for (step[0] = -g.span[0]; step[0] <= g.span[0]; ++step[0])
    for (step[1] = -g.span[1]; step[1] <= g.span[1]; ++step[1])
      for (step[2] = -g.span[2]; step[2] <= g.span[2]; ++step[2]) {
        int bin = 0, image[3];
        for (int k = 0; k < 3; ++k) {
          bin = bin * g.bins[k] + step_from(home[k], step[k], g.bins[k], image[k]);
          if (!(g.periodic >> k & 1)) image[k] = 0;
        }
        const int begin = l.bins ? l.start[bin] : g.begin, end = l.bins ? l.start[bin + 1] : g.end;
        for (int q0 = begin; q0 < end; q0 += 32) {
          Entry e{};
          bool near = false;
          if (q0 + lane < end) {
            e.j = l.order[q0 + lane];
            for (int k = 0; k < 3; ++k) e.s[k] = image[k] - l.wrap[3 * static_cast<std::size_t>(e.j) + k] + wrap[k];
            double shift[3], d[3];
            shift_vector(g.cell, e.s, shift);
            pair_vector(ri, l.positions + 3 * static_cast<std::size_t>(e.j), shift, d);
            near = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < reach * reach && !(e.j == i && !e.s[0] && !e.s[1] && !e.s[2]);
          }
          const unsigned all = __ballot_sync(kWarp, near);
          const int to = n + __popc(all & ((1u << lane) - 1));
          if (near && to < l.reach_capacity) found[to] = e;
          n += __popc(all);
        }
      }
  if (lane == 0) atomicMax(l.verdict->most, n);
  n = n < l.reach_capacity ? n : l.reach_capacity;
  __syncwarp();
  for (int q = lane; q < n; q += 32) {
    int rank = 0;
    for (int k = 0; k < n; ++k) rank += before(found[k], found[q]);
    l.reached[static_cast<std::size_t>(row) * l.reach_capacity + rank] = found[q];
  }
  if (lane == 0) l.reached_count[row] = n;
}

// One warp a row: what of it is within the cutoff now, in the same order.
__global__ void __launch_bounds__(kBlock) compact(List l) {
  const int row = thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= l.atoms) return;
  if (l.verdict->refused) {  // there may be no list at all
    if (lane == 0) l.order[row] = l.row_of[row] = row, l.slot[row] = l.count[row] = l.half[row] = 0;
    return;
  }
  const int i = l.order[row];
  const double *ri = l.positions + 3 * static_cast<std::size_t>(i), *cell = l.grids[l.system[i]].cell;
  const Entry* skin = l.reached + static_cast<std::size_t>(row) * l.reach_capacity;
  const Entry own{i, {0, 0, 0}};
  int n = 0, half = 0;
  for (int q0 = 0; q0 < l.reached_count[row]; q0 += 32) {
    Entry e{};
    double d[3] = {}, square = 0.0;
    bool near = false;
    if (q0 + lane < l.reached_count[row]) {
      e = skin[q0 + lane];
      double shift[3] = {0, 0, 0};
      if (e.s[0] || e.s[1] || e.s[2]) shift_vector(cell, e.s, shift);
      pair_vector(ri, l.positions + 3 * static_cast<std::size_t>(e.j), shift, d);
      square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
      near = square < l.cutoff * l.cutoff;
    }
    const unsigned all = __ballot_sync(kWarp, near);
    const int to = n + __popc(all & ((1u << lane) - 1));
    if (near && to < l.capacity) {
      const std::size_t p = static_cast<std::size_t>(row) * l.capacity + to;
      l.entries[p] = e;
      l.j[p] = l.row_of[e.j];
      for (int a = 0; a < 3; ++a) l.vectors[3 * p + a] = d[a];
      l.distances[p] = sqrt(square);
      if (square < l.closest * l.closest) l.verdict->overlap = 1;
    }
    half += __popc(__ballot_sync(kWarp, near && before(e, own)));
    n += __popc(all);
  }
  if (lane != 0) return;
  atomicMax(l.verdict->most + 1, n);
  l.slot[row] = l.kind[i];
  l.count[row] = n < l.capacity ? n : l.capacity;
  l.half[row] = half < l.capacity ? half : l.capacity;
}

}  // namespace

void neighbors(const List& l, cudaStream_t stream) {
  const auto blocks = [](int threads) { return dim3(static_cast<unsigned>((threads + kBlock - 1) / kBlock)); };
  const dim3 of_rows(static_cast<unsigned>((l.atoms + kRowsOfBlock - 1) / kRowsOfBlock));
  launch(look, blocks(l.atoms > l.systems ? l.atoms : l.systems), kBlock, 0, stream, l);
  if (l.bins) launch(clear, blocks(l.bins + 1), kBlock, 0, stream, l);
  launch(place, blocks(l.atoms), kBlock, 0, stream, l);
  if (l.bins) {
    launch(scan, dim3(1), kScan, kScan * sizeof(int), stream, l);
    launch(fill, blocks(l.atoms), kBlock, 0, stream, l);
  }
  launch(rows, of_rows, kBlock, 0, stream, l);
  launch(compact, of_rows, kBlock, 0, stream, l);
}

}  // namespace cuda
}  // namespace mfmd
