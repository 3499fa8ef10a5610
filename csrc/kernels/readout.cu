// Invariants of the last features, the heads' energies, and the start of the reverse pass up to the last layer's messages: the twin of readout.cpp.
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

// Numbers an atom: the slopes of all hidden layers, and what one layer hands to the next.
template <class T> __host__ __device__ inline int room_of(const Perceptron<T>& p) {
  int slopes = 0, widest = 0;
  for (int k = 0; k < p.layers; ++k) slopes += p.hidden[k].out, widest = p.hidden[k].out > widest ? p.hidden[k].out : widest;
  return slopes + (p.layers > 1 ? 2 : 1) * widest;
}

// A perceptron on the atoms of a block, in its room of shared memory.
template <class T> struct Run {
  const Perceptron<T>& p;
  int atoms;
  T* slopes;  // of the hidden layers, one behind the other, [atoms][width]
  T* last;    // what the last of them gives

  __device__ Run(const Perceptron<T>& of, int n, T* room) : p(of), atoms(n), slopes(room), last(nullptr) {}
  __device__ T* slope_of(int layer) const {
    T* at = slopes;
    for (int k = 0; k < layer; ++k) at += atoms * p.hidden[k].out;
    return at;
  }
  __device__ void forward(const T* x) {
    T* to = slope_of(p.layers);
    T* other = to + (room_of(p) * atoms - (to - slopes)) / 2;
    for (int l = 0; l < p.layers; ++l) {
      const Dense<T>& d = p.hidden[l];
      const int H = d.out;
      T *slope = slope_of(l), *out = to;
      dense<2 * kSlab>(x, d.w, d.b, atoms, d.in, H, [&](int a, int k, Four<T> v) {
        Four<T> s;
        for (int e = 0; e < 4; ++e) v.v[e] = silu(v.v[e], s.v[e]);
        store(out + a * H + k, v);
        store(slope + a * H + k, s);
      });
      __syncthreads();
      x = last = to;
      to = other, other = last;
    }
  }
  // Its result for an atom, the same in every lane of a warp.
  __device__ double result(int a, int lane) const {
    double sum = 0.0;
    for (int k = lane; k < p.out.in; k += 32) sum += static_cast<double>(last[a * p.out.in + k]) * p.out.w[k];
    return warp_sum(sum) + static_cast<double>(p.out.b[0]);
  }
  // The slopes of an atom's last hidden layer become adjoints of what went into it.
  __device__ void begin_reverse(int a, int lane, T weight) const {
    T* slope = slope_of(p.layers - 1) + a * p.out.in;
    for (int k = lane; k < p.out.in; k += 32) slope[k] *= weight * p.out.w[k];
  }
  __device__ void reverse(T* ax) const {
    for (int l = p.layers; l--;) {
      const Dense<T>& d = p.hidden[l];
      T* to = l ? slope_of(l - 1) : ax;
      dense(slope_of(l), d.wt, static_cast<const T*>(nullptr), atoms, d.out, d.in, [&](int a, int k, const Four<T>& v) {
        T* at = to + a * d.in + k;
        store(at, l ? load(at) * v : load(at) + v);
      });
      __syncthreads();
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) readout_kernel(Block<T> block, int rows, Norm<T> norm, Dense<T> linear, bool activation, ProductReverse<T> leave, const HeadWeights<T>* heads,
                                                        const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, int room, T* ax, T* features) {
  wait_for_what_is_before();
  const int F = block.F, R = block.R, RF = R * F, begin = block.begin(), atoms = block.count(rows), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* next = shared<T>();
  const auto take = [&](int width) { T* p = next; next += block.atoms * width; return p; };
  T *normal = take(RF), *scaled = take(RF), *slope = take(F), *feature = take(F), *az = take(F), *of_head = take(room), *inverse = take(4);
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    const T* xi = x + row;
    for (int part = 0; part < R; ++part) {
      T sum = T(0);
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) sum += xi[k * kSlab] * xi[k * kSlab];
      scaled[a * RF + part * F + f] = sum;
    }
    az[a * F + f] = T(0);
  });
  __syncthreads();
  for (int a = warp; a < atoms; a += kThreads / 32) {
    const T i = layer_norm(norm, scaled + a * RF, RF, normal + a * RF, scaled + a * RF);
    if (lane == 0) inverse[a] = i;
  }
  __syncthreads();
  dense(scaled, linear.w, linear.b, atoms, RF, F, [&](int a, int f, Four<T> v) {
    Four<T> s;
    for (int k = 0; k < 4; ++k)
      if (activation) v.v[k] = silu(v.v[k], s.v[k]);
      else s.v[k] = T(1);
    store(feature + a * F + f, v);
    store(slope + a * F + f, s);
    if (features) store(features + static_cast<std::size_t>(begin + a) * F + f, v);
  });
  __syncthreads();
  for (int s = 0; s < n_seeds; ++s) {
    const HeadWeights<T>& head = heads[seeds[s].head];
    const T weight = static_cast<T>(seeds[s].weight * head.scale);
    if (head.linear) {
      for (int a = warp; a < atoms; a += kThreads / 32) {
        const int own = slot[begin + a];
        const T *v = feature + a * F, *w = head.linear + static_cast<std::size_t>(own) * F;
        double sum = 0.0;
        for (int k = lane; k < F; k += 32) {
          sum += static_cast<double>(v[k]) * w[k];
          az[a * F + k] += weight * w[k];
        }
        sum = warp_sum(sum);
        if (lane == 0) seeds[s].energies[begin + a] = head.scale * sum + head.e0[own];
      }
      __syncthreads();
      continue;
    }
    const bool gated = head.gate.layers > 0;
    Run<T> value(head.value, atoms, of_head), gate(head.gate, atoms, of_head + atoms * room_of(head.value));
    value.forward(feature);
    if (gated) gate.forward(feature);
    for (int a = warp; a < atoms; a += kThreads / 32) {
      const int own = slot[begin + a];
      const double v = value.result(a, lane), open = gated ? 1.0 / (1.0 + exp(-gate.result(a, lane))) : 1.0;
      if (lane == 0) seeds[s].energies[begin + a] = head.scale * (v * open) + head.e0[own];
      value.begin_reverse(a, lane, static_cast<T>(weight * open));
      if (gated) gate.begin_reverse(a, lane, static_cast<T>(weight * v * open * (1.0 - open)));
    }
    __syncthreads();
    if (!ax || seeds[s].weight == T(0)) continue;
    value.reverse(az);
    if (gated) gate.reverse(az);
  }
  if (!ax) return;
  for (int item = threadIdx.x; item < atoms * F; item += blockDim.x) az[item] *= slope[item];
  __syncthreads();
  dense(az, linear.wt, static_cast<const T*>(nullptr), atoms, F, RF, [&](int a, int k, const Four<T>& v) { store(scaled + a * RF + k, v); });
  __syncthreads();
  for (int a = warp; a < atoms; a += kThreads / 32) layer_norm_reverse(norm, normal + a * RF, inverse[a], scaled + a * RF, RF, scaled + a * RF);
  __syncthreads();
  block.each_channel(rows, [&](int a, int f, std::size_t row) {
    for (int part = 0; part < R; ++part)
      for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) ax[row + k * kSlab] = 2 * x[row + k * kSlab] * scaled[a * RF + part * F + f];
  });
  leave(block, rows, ax);
}

// Of a model without layers.
template <class T> __global__ void __launch_bounds__(kThreads, 2) embedding_mix_reverse_kernel(Block<T> block, int rows, EmbeddingMixReverse<T> leave, const T* ax) { wait_for_what_is_before(); leave(block, rows, ax); }

}  // namespace

template <class T> int room_of(const HeadWeights<T>& head) { return head.linear ? 0 : (room_of(head.value) + room_of(head.gate) + 3) / 4 * 4; }
template int room_of<float>(const HeadWeights<float>&);
template int room_of<double>(const HeadWeights<double>&);

template <class T>
void readout(const Weights<T>& w, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, int room, T* ax, T* features, const Leaving<T>& to, int rows, cudaStream_t stream) {
  const int numbers = (2 * w.R + 3) * w.F + room + 4;
  const ProductReverse<T> leave = to.l < 0 ? ProductReverse<T>{} : product_reverse(w, to);
  over_atoms(readout_kernel<T>, w, std::max(numbers, ax ? leave.numbers(w) : 0), rows, stream, w.readout_norm, w.readout, w.readout_silu, leave, w.heads, slot, x, seeds, n_seeds, room, ax, features);
  if (!ax || to.l >= 0) return;
  const EmbeddingMixReverse<T> last = embedding_mix_reverse(w, to);
  over_atoms(embedding_mix_reverse_kernel<T>, w, last.numbers(w), rows, stream, last, ax);
}
template void readout<float>(const Weights<float>&, const int*, const float*, const Seed<float>*, int, int, float*, float*, const Leaving<float>&, int, cudaStream_t);
template void readout<double>(const Weights<double>&, const int*, const double*, const Seed<double>*, int, int, double*, double*, const Leaving<double>&, int, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
