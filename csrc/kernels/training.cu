// The maps of training.hpp on a CUDA device: a thread for each channel of a row, or a warp where channels are summed.
#include "training.hpp"

#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

using namespace training;

constexpr int kBlock = 128;

template <int RANK, class T, class Map> __global__ void __launch_bounds__(kBlock) rows_kernel(Map map, int rows) {
  const std::size_t k = static_cast<std::size_t>(blockIdx.x) * kBlock + threadIdx.x, F = static_cast<std::size_t>(map.F);
  if (k < static_cast<std::size_t>(rows) * F) map.template row<RANK, T>(static_cast<int>(k / F), static_cast<int>(k % F));
}

template <int RANK, class T, class Map> __global__ void __launch_bounds__(kBlock) sums_kernel(Map map, int rows) {
  constexpr int size = Map::sums(RANK);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::size_t row = static_cast<std::size_t>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32;
  if (row >= static_cast<std::size_t>(rows)) return;
  T sum[size] = {};
  for (int f = lane; f < map.F; f += 32) map.template add<RANK, T>(static_cast<int>(row), f, sum);
  for (int k = 0; k < size; ++k) {
    const T all = warp_sum(sum[k]);
    if (lane == 0) map.out[offset(static_cast<int>(row), size) + static_cast<std::size_t>(k)] = all;
  }
}

template <class T> __global__ void __launch_bounds__(kBlock) silu_second_kernel(SiluSecond<T> map, int n) {
  const std::size_t k = static_cast<std::size_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (k >= static_cast<std::size_t>(n)) return;
  const T x = map.x[k], s = T(1) / (T(1) + exponential(-x));
  map.out[k] = map.g[k] * map.h[k] * (s * (T(1) - s) * (T(2) + x * (T(1) - T(2) * s)));
}

dim3 blocks(std::size_t threads) { return dim3(static_cast<unsigned>((threads + kBlock - 1) / kBlock)); }
cudaStream_t stream_of(const Range& range) { return static_cast<cudaStream_t>(range.stream); }

template <class T, class Map> void rows(const Map& map, int R, const Range& range) {
  with_rank(R - 1, [&](auto rank) {
    launch(rows_kernel<decltype(rank)::value, T, Map>, blocks(static_cast<std::size_t>(range.end) * static_cast<std::size_t>(map.F)), kBlock, 0, stream_of(range), map, range.end);
  });
}
template <class T, class Map> void sums(const Map& map, int R, const Range& range) {
  with_rank(R - 1, [&](auto rank) { launch(sums_kernel<decltype(rank)::value, T, Map>, blocks(32 * static_cast<std::size_t>(range.end)), kBlock, 0, stream_of(range), map, range.end); });
}
template <class T> void silu_second(const SiluSecond<T>& map, int, const Range& range) {
  launch(silu_second_kernel<T>, blocks(static_cast<std::size_t>(range.end)), kBlock, 0, stream_of(range), map, range.end);
}

template <class T> const TrainingMaps<T>* maps() {
  static const TrainingMaps<T> all = {
      rows<T, Gather<T>>, rows<T, Dot<T>>, rows<T, Anticommutator<T>>, rows<T, Scale<T>>, rows<T, Dots<T>>, rows<T, Normalize<T>>, rows<T, Interpolate<T>>,
      sums<T, InterpolateCoefficients<T>>, rows<T, InterpolateTable<T>>, rows<T, Embed<T>>, rows<T, EmbedWeights<T>>, sums<T, EmbedDirections<T>>,
      rows<T, EmbedValues<T>>, silu_second<T>, nullptr, nullptr};
  return &all;
}

}  // namespace
}  // namespace cuda

template <> const TrainingMaps<float>* training_maps_on_device<float>() { return cuda::maps<float>(); }
template <> const TrainingMaps<double>* training_maps_on_device<double>() { return cuda::maps<double>(); }

}  // namespace mfmd
