// Invariants of the last features, the heads' energies, and the start of the reverse pass up to the last layer's messages: the twin of readout.cpp.
#include "passes.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 2) readout_kernel(Block<T> block, int rows, Norm<T> norm, Dense<T> linear, ProductReverse<T> leave, const HeadWeights<T>* heads, const int* slot,
                                                        const T* x, const Seed<T>* seeds, int n_seeds, int widest, T* ax, T* features) {
  const int F = block.F, R = block.R, RF = R * F, begin = block.begin(), atoms = block.count(rows), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* next = shared<T>();
  const auto take = [&](int width) { T* p = next; next += block.atoms * width; return p; };
  T *normal = take(RF), *scaled = take(RF), *slope = take(F), *feature = take(F), *az = take(F), *hidden = take(widest), *ahidden = take(widest), *inverse = take(4);
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
    for (int k = 0; k < 4; ++k) v.v[k] = silu(v.v[k], s.v[k]);
    store(feature + a * F + f, v);
    store(slope + a * F + f, s);
    if (features) store(features + static_cast<std::size_t>(begin + a) * F + f, v);
  });
  __syncthreads();
  for (int s = 0; s < n_seeds; ++s) {
    const HeadWeights<T> head = heads[seeds[s].head];
    const T weight = static_cast<T>(seeds[s].weight * head.scale);
    const int H = head.linear ? F : head.hidden.out;
    if (!head.linear) {
      dense(feature, head.hidden.w, head.hidden.b, atoms, F, H, [&](int a, int k, Four<T> v) {
        Four<T> d;
        for (int e = 0; e < 4; ++e) {
          v.v[e] = silu(v.v[e], d.v[e]);
          d.v[e] = weight * head.out.w[k + e] * d.v[e];
        }
        store(hidden + a * H + k, v);
        store(ahidden + a * H + k, d);
      });
      __syncthreads();
    }
    for (int a = warp; a < atoms; a += kThreads / 32) {
      const int own = slot[begin + a];
      const T *v = head.linear ? feature + a * F : hidden + a * H, *w = head.linear ? head.linear + static_cast<std::size_t>(own) * F : head.out.w;
      double sum = 0.0;
      for (int k = lane; k < H; k += 32) {
        sum += static_cast<double>(v[k]) * w[k];
        if (head.linear) az[a * F + k] += weight * w[k];
      }
      sum = warp_sum(sum) + (head.linear ? 0.0 : static_cast<double>(head.out.b[0]));
      if (lane == 0) seeds[s].energies[begin + a] = head.scale * sum + head.e0[own];
    }
    __syncthreads();
    if (!head.linear && ax && seeds[s].weight != T(0)) {
      dense(ahidden, head.hidden.wt, static_cast<const T*>(nullptr), atoms, H, F, [&](int a, int f, const Four<T>& v) { store(az + a * F + f, load(az + a * F + f) + v); });
      __syncthreads();
    }
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
template <class T> __global__ void __launch_bounds__(kThreads, 2) embedding_mix_reverse_kernel(Block<T> block, int rows, EmbeddingMixReverse<T> leave, const T* ax) { leave(block, rows, ax); }

}  // namespace

template <class T>
void readout(const Weights<T>& w, const int* slot, const T* x, const Seed<T>* seeds, int n_seeds, int widest, T* ax, T* features, const Leaving<T>& to, int rows, cudaStream_t stream) {
  const int numbers = (2 * w.R + 3) * w.F + 2 * widest + 4;
  const ProductReverse<T> leave = to.l < 0 ? ProductReverse<T>{} : product_reverse(w, to);
  over_atoms(readout_kernel<T>, w, std::max(numbers, ax ? leave.numbers(w) : 0), rows, stream, w.readout_norm, w.readout, leave, w.heads, slot, x, seeds, n_seeds, widest, ax, features);
  if (!ax || to.l >= 0) return;
  const EmbeddingMixReverse<T> last = embedding_mix_reverse(w, to);
  over_atoms(embedding_mix_reverse_kernel<T>, w, last.numbers(w), rows, stream, last, ax);
}
template void readout<float>(const Weights<float>&, const int*, const float*, const Seed<float>*, int, int, float*, float*, const Leaving<float>&, int, cudaStream_t);
template void readout<double>(const Weights<double>&, const int*, const double*, const Seed<double>*, int, int, double*, double*, const Leaving<double>&, int, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
