// What the CUDA kernels share that work on atoms one by one: the rows of some atoms belong to one thread block, which multiplies them
// with matrices out of its shared memory.
#pragma once

#include <type_traits>

#include "cuda.hpp"

namespace mfmd {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kRows = 8;       // rows of a matrix product that one thread carries, for four columns …
constexpr int kFewRows = 4;    // … and where a block's threads are enough for these, as in small molecules
constexpr int kBlockAtoms = 16;                   // at most
constexpr std::size_t kBlockMemory = 76 * 1024;   // bytes of shared memory: two blocks of a multiprocessor

template <class T> struct Block {
  int R, C, F, atoms;  // atoms: of one block
  bool tf32;
  __device__ int begin() const { return static_cast<int>(blockIdx.x) * atoms; }
  __device__ int count(int rows) const { return rows - begin() < atoms ? rows - begin() : atoms; }
  // Where channel f of component 0 of a row's features lies; the other components follow at steps of 16.
  __device__ std::size_t at(int row, int f) const { return (static_cast<std::size_t>(row) * F + f / kSlab * kSlab) * C + f % kSlab; }
  // body(a, f, row) for every channel f of the block's atoms, a counted from its first; row: where component 0 lies.
  template <class Body> __device__ void each_channel(int rows, const Body& body) const {
    const int until = count(rows) * F;
    for (int item = threadIdx.x; item < until; item += blockDim.x) body(item / F, item % F, at(begin() + item / F, item % F));
  }
  // The same with the rank as a constant: body(rank, a, f, row). It is for what is done element by element: products of matrices are compiled once for all.
  template <class Body> __device__ void each_channel_of_rank(int rows, const Body& body) const {
    const auto of = [&](auto rank) { each_channel(rows, [&](int a, int f, std::size_t row) { body(rank, a, f, row); }); };
    if (R == 1) of(Rank<0>());
    else if (R == 2) of(Rank<1>());
    else of(Rank<2>());
  }
};
template <class T> struct Mixers {  // a matrix [F][F] for each part, or its transpose
  const T* part[kMaxParts] = {};
  Mixers() = default;
  Mixers(const Weights<T>& w, const Dense<T>* from, bool transposed = false) {
    for (int p = 0; p < w.R; ++p) part[p] = transposed ? from[p].wt : from[p].w;
  }
};

// kernel(block, rows, arguments …) over all rows; `numbers`: elements of T of shared memory that an atom takes.
template <class T, class... P, class... A>
inline void over_atoms(void (*kernel)(P...), const Weights<T>& w, int numbers, int rows, cudaStream_t stream, A... arguments) {
  const std::size_t bytes = static_cast<std::size_t>(numbers) * sizeof(T);
  int atoms = kBlockAtoms;
  while (atoms > 1 && (atoms * bytes > kBlockMemory || (rows + atoms - 1) / atoms < multiprocessors())) atoms /= 2;
  const Block<T> block{w.R, w.C, w.F, atoms, w.tf32};
  launch<Behind::kernel>(kernel, dim3(static_cast<unsigned>((rows + atoms - 1) / atoms)), kThreads, atoms * bytes, stream, block, rows, arguments...);
}

// y = x w + b by the tensor cores, a tile of 16 x 16 a warp: x(row) is a row in shared memory; write(row, column, four values). `in` and `out` are
// multiples of 16. A lane reads four numbers of x side by side, so that what a tile calls its k is another order of the same sum.
template <class Row, class Write>
__device__ inline void tiles(int rows, int in, int out, const float* w, const float* b, const Row& x, const Write& write) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, columns = out / 16, tasks = (rows + 15) / 16 * columns;
  for (int task = threadIdx.x / 32; task < tasks; task += blockDim.x / 32) {
    __syncwarp();  // only some of its lanes may have written
    const int row0 = task / columns * 16, column0 = task % columns * 16, low = row0 + g, high = low + 8;
    const float *x_low = x(low < rows ? low : rows - 1), *x_high = x(high < rows ? high : rows - 1);
    float c[2][4] = {};
    for (int k0 = 0; k0 < in; k0 += 16) {
      const int k = k0 + 4 * t;
      const Four<float> a_low = load(x_low + k), a_high = load(x_high + k);
      const float* wk = w + static_cast<std::size_t>(k) * out + column0 + g;
#pragma unroll
      for (int step = 0; step < 4; step += 2) {
        const float a[4] = {a_low.v[step], a_high.v[step], a_low.v[step + 1], a_high.v[step + 1]};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float bk[2] = {wk[step * out + 8 * half], wk[(step + 1) * out + 8 * half]};
          multiply_tile(c[half], a, bk);
        }
      }
    }
    const bool odd = t % 2;  // two lanes have four columns of both rows: the even one writes the first row, the odd one the second
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&own)[4] = c[half];
      const float got0 = __shfl_xor_sync(kWarp, odd ? own[0] : own[2], 1), got1 = __shfl_xor_sync(kWarp, odd ? own[1] : own[3], 1);
      const int row = odd ? high : low, column = column0 + 8 * half + t / 2 * 4;
      Four<float> v = odd ? Four<float>{{got0, got1, own[2], own[3]}} : Four<float>{{own[0], own[1], got0, got1}};
      if (b) v += load(b + column);
      if (row < rows) write(row, column, v);
    }
  }
}

// sum[r] += x[from[r] …] w, for four columns of w, [in][out]; k runs upwards however many rows there are, so that a sum has the same bits. With few
// rows nothing else hides how long weights take to arrive, and several of a float's are on their way at a time.
template <int ROWS, class T> __device__ inline void multiply(const T* x, const int (&from)[ROWS], const T* w, int in, int out, Four<T> (&sum)[ROWS]) {
  [[maybe_unused]] constexpr int kAhead = ROWS == kFewRows && std::is_same_v<T, float> ? 4 : 1;
#pragma unroll kAhead
  for (int k = 0; k < in; k += 4) {
    const T* wk = w + static_cast<std::size_t>(k) * out;
    const Four<T> w0 = load(wk), w1 = load(wk + out), w2 = load(wk + 2 * out), w3 = load(wk + 3 * out);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const Four<T> xk = load(x + from[r] + k);
      sum[r] = multiply_add(xk.v[3], w3, multiply_add(xk.v[2], w2, multiply_add(xk.v[1], w1, multiply_add(xk.v[0], w0, sum[r]))));
    }
  }
}

// with_rows(tasks, body): body with how many rows a thread carries, where tasks(rows) threads have work.
template <class Tasks, class Body> __device__ inline void with_rows(const Tasks& tasks, const Body& body) {
  if (tasks(kFewRows) > kThreads && tasks(kFewRows) > tasks(kRows)) body(std::integral_constant<int, kRows>());
  else body(std::integral_constant<int, kFewRows>());
}

// y = x w + b: x in shared memory, rows one behind the other; write(row, column, four values). PART: in single precision by sums of so many, which
// are added up; 0: by one.
template <int PART = 0, class T, class Write> __device__ inline void dense(const T* x, const T* w, const T* b, int rows, int in, int out, const Write& write) {
  const int quads = out / 4;
  const auto tasks = [&](int at_a_time) { return (rows + at_a_time - 1) / at_a_time * quads; };
  with_rows(tasks, [&](auto carried) {
    constexpr int kCarried = decltype(carried)::value;
    for (int task = threadIdx.x; task < tasks(kCarried); task += blockDim.x) {
      const int row0 = task / quads * kCarried, column = task % quads * 4;
      Four<T> sum[kCarried];
      int from[kCarried];
#pragma unroll
      for (int r = 0; r < kCarried; ++r) {
        sum[r] = b ? load(b + column) : Four<T>{};
        from[r] = (row0 + r < rows ? row0 + r : rows - 1) * in;
      }
      if constexpr (PART > 0 && std::is_same_v<T, float>) {
        for (int k = 0; k < in; k += PART) {
          Four<T> part[kCarried] = {};
          multiply(x + k, from, w + static_cast<std::size_t>(k) * out + column, in - k < PART ? in - k : PART, out, part);
#pragma unroll
          for (int r = 0; r < kCarried; ++r) sum[r] += part[r];
        }
      } else {
        multiply(x, from, w + column, in, out, sum);
      }
#pragma unroll
      for (int r = 0; r < kCarried; ++r)
        if (row0 + r < rows) write(row0 + r, column, sum[r]);
    }
  });
}

// The same in what precision the block is to have.
template <class T, class Write>
__device__ inline void dense(const Block<T>& block, const T* x, const T* w, const T* b, int rows, int in, int out, const Write& write) {
  if constexpr (std::is_same_v<T, float>)
    if (block.tf32) return tiles(rows, in, out, w, b, [&](int row) { return x + static_cast<std::size_t>(row) * in; }, write);
  dense(x, w, b, rows, in, out, write);
}

// y = x mix[part of the component] for the features of a block's atoms: x in shared memory, [atoms][C][F]; write(atom, component, column,
// four values).
template <class T, class Write> __device__ inline void mix(const Block<T>& block, const Mixers<T>& mixers, const T* x, int atoms, const Write& write) {
  const int R = block.R, C = block.C, F = block.F, quads = F / 4;
  if constexpr (std::is_same_v<T, float>)
    if (block.tf32) {
#pragma unroll
      for (int part = 0; part < kMaxParts; ++part) {
        if (part >= R) continue;
        const int size = tensor::size(part), first = tensor::first(part);
        tiles(atoms * size, F, F, mixers.part[part], nullptr, [&](int row) { return x + (row / size * C + first + row % size) * F; },
              [&](int row, int f, const Four<float>& v) { write(row / size, first + row % size, f, v); });
      }
      return;
    }
  const auto groups = [&](int part, int at_a_time) { return part < R ? (atoms * tensor::size(part) + at_a_time - 1) / at_a_time : 0; };
  const auto tasks = [&](int at_a_time) { return (groups(0, at_a_time) + groups(1, at_a_time) + groups(2, at_a_time)) * quads; };
  with_rows(tasks, [&](auto carried) {
    constexpr int kCarried = decltype(carried)::value;
    const int until1 = groups(0, kCarried), until2 = until1 + groups(1, kCarried);
    for (int task = threadIdx.x; task < tasks(kCarried); task += blockDim.x) {
      const int group = task / quads, column = task % quads * 4, part = group < until1 ? 0 : group < until2 ? 1 : 2;
      const int size = tensor::size(part), rows = atoms * size, row0 = (group - (part == 0 ? 0 : part == 1 ? until1 : until2)) * kCarried;
      const T* w = part == 0 ? mixers.part[0] : part == 1 ? mixers.part[1] : mixers.part[2];  // no array in local memory
      Four<T> sum[kCarried];
      int from[kCarried];
#pragma unroll
      for (int r = 0; r < kCarried; ++r) {
        const int row = row0 + r < rows ? row0 + r : rows - 1;
        sum[r] = Four<T>{};
        from[r] = (row / size * C + tensor::first(part) + row % size) * F;
      }
      multiply(x, from, w + column, F, F, sum);
#pragma unroll
      for (int r = 0; r < kCarried; ++r) {
        const int row = row0 + r;
        if (row < rows) write(row / size, tensor::first(part) + row % size, column, sum[r]);
      }
    }
  });
}

// LayerNorm of one row by one warp; statistics in double. normal: [n], the row before weight and bias; returns 1 / sigma. y may be x.
template <class T> __device__ inline T layer_norm(const Norm<T>& p, const T* x, int n, T* normal, T* y) {
  const int lane = threadIdx.x % 32;
  double mean = 0.0, square = 0.0;
  for (int k = lane; k < n; k += 32) mean += static_cast<double>(x[k]);
  mean = warp_sum(mean) / n;
  for (int k = lane; k < n; k += 32) square += (x[k] - mean) * (x[k] - mean);
  const double inverse = 1.0 / sqrt(warp_sum(square) / n + 1e-5);
  for (int k = lane; k < n; k += 32) {
    normal[k] = static_cast<T>((x[k] - mean) * inverse);
    y[k] = normal[k] * p.weight[k] + p.bias[k];
  }
  return static_cast<T>(inverse);
}
template <class T> __device__ inline void layer_norm_reverse(const Norm<T>& p, const T* normal, T inverse, const T* ay, int n, T* ax) {
  const int lane = threadIdx.x % 32;
  double mean = 0.0, along = 0.0;
  for (int k = lane; k < n; k += 32) {
    const double a = static_cast<double>(ay[k]) * p.weight[k];
    mean += a;
    along += a * normal[k];
  }
  mean = warp_sum(mean) / n;
  along = warp_sum(along) / n;
  for (int k = lane; k < n; k += 32) ax[k] = static_cast<T>(inverse * (static_cast<double>(ay[k]) * p.weight[k] - mean - along * normal[k]));
}

}  // namespace cuda
}  // namespace mfmd
