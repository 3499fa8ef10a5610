// The neighbour list on the device: whether it is stale, bins, rows, and every step's compaction. All kernels are launched every step and those
// that build return at once while the list holds, so that no step waits for the host. Up to the rows one block does all for a few atoms.
//
// Bins of periodic directions divide the cell. Along the others space is cut into equal slices, and slice k is in bin k modulo their number:
// no bounding box is needed, and atoms that share a bin from afar are told apart by their distance.
#include <algorithm>

#include "cuda.hpp"
#include "lattice.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128, kRowsOfBlock = kBlock / 32, kScan = 512;
constexpr int kFew = 4 * kScan;  // atoms and systems that one block prepares the list of

// A list is built anew; one whose cell is flat or whose atoms are nowhere is not.
__device__ bool building(const List& l) { return l.verdict->stale && !l.verdict->refused; }
__device__ int thread() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// The bins of one system; false for a cell that is flat, or has too many within reach. Where `one` is set, all atoms are in one bin, and images are looked for in all cells
// within reach.
__device__ bool find_grid(const double* cell, int periodic, int begin, int end, double reach, bool one, Grid& g) {
  Lattice l;
  const bool wrapped[3] = {(periodic & 1) != 0, (periodic & 2) != 0, (periodic & 4) != 0};
  if (find_lattice(cell, wrapped, l) >= 0 || too_many_within(l, reach)) return false;
  g.begin = begin, g.end = end, g.periodic = periodic;
  int largest = 0;
  for (int k = 0; k < 3; ++k) {
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
__device__ void look(const List& l, int i) {
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
  if (l.bins && i <= l.bins) l.start[i] = 0;
  if (i >= l.atoms) return;
  const double *r = l.positions + 3 * static_cast<std::size_t>(i), *then = l.built + 3 * static_cast<std::size_t>(i);
  double square = 0.0;
  for (int a = 0; a < 3; ++a) square += (r[a] - then[a]) * (r[a] - then[a]);
  if (!isfinite(r[0]) || !isfinite(r[1]) || !isfinite(r[2])) l.verdict->refused = 1;
  else if (4.0 * square > l.skin * l.skin) l.verdict->stale = 1;
}

// Bin of an atom, and how many cells it is away from the first.
__device__ void place(const List& l, int i) {
  if (i >= l.atoms) return;
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

// A block's piece of start: running sums of what it holds, after those before it; returns the last.
__device__ int scan(const List& l, int piece, int before) {
  int* sums = shared<int>();
  const int t = static_cast<int>(threadIdx.x), bin = piece * kScan + t;
  sums[t] = bin <= l.bins ? l.start[bin] : 0;
  __syncthreads();
  for (int step = 1; step < kScan; step *= 2) {
    const int left = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += left;
    __syncthreads();
  }
  if (bin <= l.bins) l.start[bin] = before + sums[t];
  if (bin < l.bins) l.cursor[bin] = before + sums[t];
  const int last = before + sums[kScan - 1];
  __syncthreads();  // before the next piece is here
  return last;
}

// Which atom of a bin comes first, the threads decide. It shows in no result: neighbours are sorted by atoms, and sums over rows go by atoms.
__device__ void fill(const List& l, int i) {
  if (i >= l.atoms) return;
  const int row = atomicAdd(l.cursor + l.home[i], 1);
  l.order[row] = i;
  l.row_of[i] = row;
}

__global__ void look_kernel(List l) { look(l, thread()); }
__global__ void place_kernel(List l) {
  wait_for_what_is_before();
  if (building(l)) place(l, thread());
}
__global__ void pieces_kernel(List l) {
  wait_for_what_is_before();
  if (!building(l)) return;
  const int sum = block_sum(thread() <= l.bins ? l.start[thread()] : 0, shared<int>());
  if (threadIdx.x == 0) l.order[blockIdx.x] = sum;
}
__global__ void scan_kernel(List l) {
  wait_for_what_is_before();
  if (!building(l)) return;
  const int piece = static_cast<int>(blockIdx.x);
  int before = 0;
  for (int k = static_cast<int>(threadIdx.x); k < piece; k += kScan) before += l.order[k];
  before = block_sum(before, shared<int>());
  __syncthreads();  // some may not have read it yet, and its room is taken next
  scan(l, piece, before);
}
__global__ void fill_kernel(List l) {
  wait_for_what_is_before();
  if (building(l)) fill(l, thread());
}

// All of these in one block.
__global__ void __launch_bounds__(kScan) prepare(List l, int looks) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) *l.verdict = Verdict{};
  __syncthreads();
  for (int i = t; i < looks; i += kScan) look(l, i);
  __syncthreads();
  const bool build = building(l);
  __syncthreads();  // before an atom is found to be too far away
  if (!build) return;
  for (int i = t; i < l.atoms; i += kScan) place(l, i);
  if (!l.bins) return;
  __syncthreads();
  for (int piece = 0, before = 0; piece * kScan <= l.bins; ++piece) before = scan(l, piece, before);
  __syncthreads();
  for (int i = t; i < l.atoms; i += kScan) fill(l, i);
}

// One warp: everything within reach of the row's atom, as it is found in the bins around, then sorted by rank.
__device__ void find(const List& l, int row, int lane) {
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

// One warp: what of that is within the cutoff now, in the same order.
__device__ void compact(const List& l, int row, int lane) {
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
  if (n > l.verdict->most[1]) atomicMax(l.verdict->most + 1, n);  // few rows are longer than all before them
  l.slot[row] = l.kind[i];
  l.count[row] = n < l.capacity ? n : l.capacity;
  l.half[row] = half < l.capacity ? half : l.capacity;
}

// One warp a row.
__global__ void __launch_bounds__(kBlock) rows(List l) {
  wait_for_what_is_before();
  const int row = thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= l.atoms) return;
  if (building(l)) {
    find(l, row, lane);
    __syncwarp();  // what one lane has written the others read
  }
  compact(l, row, lane);
}

// One warp a row: the host's neighbours, sorted by rank; and the places of all atoms and ghosts.
__global__ void __launch_bounds__(kBlock) rows_of_host(List l, HostRows host) {
  const int row = thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (const int i = thread(); i < l.atoms + l.ghosts) l.order[i] = l.row_of[i] = i, l.slot[i] = l.kind[i];
  if (row >= l.atoms) return;
  const int *found = host.j + host.first[row], n = host.first[row + 1] - host.first[row];
  for (int q = lane; q < n; q += 32) {
    int rank = 0;
    for (int k = 0; k < n; ++k) rank += found[k] < found[q] || (found[k] == found[q] && k < q);
    l.reached[static_cast<std::size_t>(row) * l.reach_capacity + rank] = {found[q], {0, 0, 0}};
  }
  if (lane == 0) l.reached_count[row] = n;
}

dim3 blocks(int threads, int of_block) { return dim3(static_cast<unsigned>((threads + of_block - 1) / of_block)); }

}  // namespace

void neighbors(const List& l, cudaStream_t stream) {
  const int looks = std::max({l.atoms, l.systems, l.bins + 1});
  if (looks <= kFew) {
    launch(prepare, dim3(1), kScan, kScan * sizeof(int), stream, l, looks);
  } else {
    check(cudaMemsetAsync(l.verdict, 0, sizeof(Verdict), stream), "a verdict");
    launch(look_kernel, blocks(looks, kBlock), kBlock, 0, stream, l);
    launch<Behind::kernel>(place_kernel, blocks(l.atoms, kBlock), kBlock, 0, stream, l);
    if (l.bins) {
      launch<Behind::kernel>(pieces_kernel, blocks(l.bins + 1, kScan), kScan, kScan / 32 * sizeof(int), stream, l);
      launch<Behind::kernel>(scan_kernel, blocks(l.bins + 1, kScan), kScan, kScan * sizeof(int), stream, l);
      launch<Behind::kernel>(fill_kernel, blocks(l.atoms, kBlock), kBlock, 0, stream, l);
    }
  }
  launch<Behind::kernel>(rows, blocks(l.atoms, kRowsOfBlock), kBlock, 0, stream, l);
}

void neighbors(const List& l, const HostRows& host, bool anew, cudaStream_t stream) {
  check(cudaMemsetAsync(l.verdict, 0, sizeof(Verdict), stream), "a verdict");
  if (anew) launch(rows_of_host, blocks(std::max(32 * l.atoms, l.atoms + l.ghosts), kBlock), kBlock, 0, stream, l, host);
  launch(rows, blocks(l.atoms, kRowsOfBlock), kBlock, 0, stream, l);
}

}  // namespace cuda
}  // namespace mfmd
