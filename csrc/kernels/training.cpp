// The maps of training.hpp on the CPU: vectors of channels, row by row. Products of matrices are here alone; on a device torch has its library's.
#include "training.hpp"

#include <algorithm>

#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

namespace {

using namespace training;

template <class T, class Map> void rows(const Map& map, int R, const Range& range) {
  with_rank(R - 1, [&](auto rank) {
    for (int n = range.begin; n < range.end; ++n)
      for (int f = 0; f < map.F; f += Simd<T>::width) map.template row<decltype(rank)::value, Vec<T>>(n, f);
  });
}
// Of maps that sum over all channels.
template <class T, class Map> void sums(const Map& map, int R, const Range& range) {
  with_rank(R - 1, [&](auto rank) {
    constexpr int RANK = decltype(rank)::value, size = Map::sums(RANK);
    for (int n = range.begin; n < range.end; ++n) {
      Vec<T> sum[size] = {};
      for (int f = 0; f < map.F; f += Simd<T>::width) map.template add<RANK, Vec<T>>(n, f, sum);
      for (int k = 0; k < size; ++k) map.out[offset(n, size) + static_cast<std::size_t>(k)] = total<T>(sum[k]);
    }
  });
}

template <class T> void silu_second(const SiluSecond<T>& map, int, const Range& range) {
  constexpr int W = Simd<T>::width;
  const auto second = [](const Vec<T>& v) {
    const Vec<T> s = T(1) / (T(1) + exponential<T>(-v));
    return s * (T(1) - s) * (T(2) + v * (T(1) - T(2) * s));
  };
  int k = range.begin;
  for (; k + W <= range.end; k += W) at(map.out + k) = at(map.g + k) * at(map.h + k) * second(at(map.x + k));
  for (; k < range.end; ++k) map.out[k] = map.g[k] * map.h[k] * second(Vec<T>{} + map.x[k])[0];
}

constexpr int kRows = 12;  // of a product at a time: their sums stay in registers

template <class T> void mix(const Mix<T>& map, int R, const Range& range) {
  const int F = map.F, begin = range.begin;
  for (int part = 0; part < R; ++part) {
    const int size = tensor::size(part), rows = (range.end - begin) * size;
    const T* m = map.m + static_cast<std::size_t>(part) * offset(F, F);
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      std::size_t at_row[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int row = std::min(r0 + r, rows - 1);
        at_row[r] = offset(begin + row / size, R * R * F) + offset(tensor::first(part) + row % size, F);
      }
      for (int f = 0; f < F; f += Simd<T>::width) {
        Vec<T> sum[kRows] = {};
        for (int k = 0; k < F; ++k) {
          const Vec<T> column = at(m + offset(k, F) + f);
          for (int r = 0; r < kRows; ++r) sum[r] += map.x[at_row[r] + static_cast<std::size_t>(k)] * column;
        }
        for (int r = 0; r < kRows; ++r) at(map.out + at_row[r] + f) = sum[r];
      }
    }
  }
}

template <class T> void mix_weights(const MixWeights<T>& map, int R, const Range& range) {
  const int F = map.F, end = range.end;
  for (int r0 = range.begin; r0 < end;) {
    const int part = r0 / F, k0 = r0 % F, rows = std::min({kRows, end - r0, F - k0}), from0 = std::min(k0, F - kRows);
    for (int f = 0; f < F; f += Simd<T>::width) {
      Vec<T> sum[kRows] = {};
      for (int a = 0; a < map.atoms; ++a)
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) {
          const std::size_t row = offset(a, R * R * F) + offset(k, F);
          const Vec<T> column = at(map.g + row + f);
          for (int r = 0; r < kRows; ++r) sum[r] += map.x[row + static_cast<std::size_t>(from0 + r)] * column;
        }
      for (int r = 0; r < rows; ++r) at(map.out + offset(r0 + r, F) + f) = sum[r + k0 - from0];
    }
    r0 += rows;
  }
}

}  // namespace

template <class T> const TrainingMaps<T>* training_maps() {
  static const TrainingMaps<T> maps = {
      rows<T, Gather<T>>, rows<T, Dot<T>>, rows<T, Anticommutator<T>>, rows<T, Scale<T>>, rows<T, Dots<T>>, rows<T, Normalize<T>>, rows<T, Interpolate<T>>,
      sums<T, InterpolateCoefficients<T>>, rows<T, InterpolateTable<T>>, rows<T, Embed<T>>, rows<T, EmbedWeights<T>>, sums<T, EmbedDirections<T>>,
      rows<T, EmbedValues<T>>, silu_second<T>, mix<T>, mix_weights<T>};
  return &maps;
}
template const TrainingMaps<float>* training_maps<float>();
template const TrainingMaps<double>* training_maps<double>();

}  // namespace MFMD_ISA
}  // namespace mfmd
