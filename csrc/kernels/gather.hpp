// What the gathering CUDA kernels share: which row and channels a thread has, and the radial functions of a pair from its tables.
// The twin of pairs.hpp.
#pragma once

#include "cuda.hpp"

namespace mfmd {
namespace cuda {

constexpr int kGatherThreads = 256;
constexpr int kGatherRows = kGatherThreads / 4;
constexpr int kManyRows = 4096;                   // from here on the rows of a block are worth a copy of the table's slab
constexpr std::size_t kSharedTable = 112 * 1024;  // bytes: two blocks of a multiprocessor have one each

// Four neighbouring threads carry the 16 channels of one slab of one row. blockIdx.y is the slab.
struct Quad {
  int row, lane, channel;  // lane: the first of the thread's four channels within the slab; channel: within F
  int width, offset;
  __device__ Quad(int C, int F) {
    row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 4;
    lane = static_cast<int>(threadIdx.x) % 4 * 4;
    channel = static_cast<int>(blockIdx.y) * kSlab + lane;
    width = C * F;
    offset = static_cast<int>(blockIdx.y) * C * kSlab + lane;
  }
  // Where the thread's channels of component 0 of a row's features lie; the other components follow at steps of 16.
  __device__ std::size_t at(int of_row) const { return static_cast<std::size_t>(of_row) * width + offset; }
  // Likewise of part 0 of an array of one number a part and channel.
  template <int R> __device__ std::size_t parts(int of_row) const { return (static_cast<std::size_t>(of_row) * (width / (R * R)) + channel - lane) * R + lane; }
};

// Over the four threads of a quad, the same in all; every thread of the warp must take part, as in the next.
template <class T> __device__ inline T quad_sum(T x) {
  x += __shfl_xor_sync(kWarp, x, 1);
  return x + __shfl_xor_sync(kWarp, x, 2);
}
__device__ inline int largest_of_warp(int x) {
  for (int step = 16; step; step /= 2) {
    const int other = __shfl_xor_sync(kWarp, x, step);
    x = other > x ? other : x;
  }
  return x;
}

template <class T> struct Table {
  const T* values;  // [F / 16][intervals][kCoefficients][R][16]
  int intervals;
  bool copied;      // its slab, to shared memory
};

// Four channels of value and, with SLOPE, slope by the place in the interval of all R parts.
template <class T, int R> struct TableWeights {
  const T* slab;  // [intervals][kCoefficients][R][16]
  const int* interval;
  const T* place;

  // Every thread of a block must take part.
  __device__ TableWeights(const Table<T>& table, const Pairs<T>& pairs) : interval(pairs.interval), place(pairs.place) {
    const int size = table.intervals * kCoefficients * R * kSlab;
    slab = table.values + static_cast<std::size_t>(blockIdx.y) * size;
    if (!table.copied) return;
    T* own = shared<T>();
    for (int k = 4 * static_cast<int>(threadIdx.x); k < size; k += 4 * static_cast<int>(blockDim.x)) store(own + k, load(slab + k));
    slab = own;
    __syncthreads();
  }
  template <bool SLOPE> __device__ void read(std::size_t p, int lane, Four<T>* value, Four<T>* slope) const {
    const T* row = slab + static_cast<std::size_t>(interval[p]) * (kCoefficients * R * kSlab) + lane;
    const T t = place[2 * p];
#pragma unroll
    for (int part = 0; part < R; ++part) value[part] = load(row + ((kCoefficients - 1) * R + part) * kSlab);
#pragma unroll
    for (int k = kCoefficients - 2; k >= 0; --k)
#pragma unroll
      for (int part = 0; part < R; ++part) {
        if constexpr (SLOPE) slope[part] = k == kCoefficients - 2 ? value[part] : value[part] + slope[part] * t;
        value[part] = load(row + (k * R + part) * kSlab) + value[part] * t;
      }
  }
  __device__ T rate(std::size_t p) const { return place[2 * p + 1]; }  // what makes slopes of those by distance
};

// kernel(table, pairs, rows, arguments …) over all rows and slabs; of layer l (embedding: -1).
template <class T, class... P, class... A>
inline void over_pairs(void (*kernel)(P...), const Weights<T>& w, int l, const Pairs<T>& pairs, int rows, cudaStream_t stream, A... arguments) {
  const std::size_t bytes = static_cast<std::size_t>(w.intervals * kCoefficients * w.R * kSlab) * sizeof(T);
  const Table<T> table{l < 0 ? w.embedding_table : w.layers[l].table, w.intervals, rows >= kManyRows && bytes <= kSharedTable};
  const dim3 grid(static_cast<unsigned>((rows + kGatherRows - 1) / kGatherRows), static_cast<unsigned>(w.F / kSlab));
  launch<Behind::kernel>(kernel, grid, kGatherThreads, table.copied ? bytes : 0, stream, table, pairs, rows, arguments...);
}

}  // namespace cuda
}  // namespace mfmd
