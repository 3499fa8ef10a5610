// The repulsion of nuclei, a warp a row.
#include "repulsion.hpp"

#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128;

template <class T> __global__ void repel_kernel(List l, const double* charge, double cutoff, const HeadWeights<T>* heads, const Seed<T>* seeds, int n_seeds, T* slope) {
  wait_for_what_is_before();
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= l.atoms) return;
  double weight = 0.0, energy = 0.0;
  for (int s = 0; s < n_seeds; ++s)
    if (heads[seeds[s].head].repels) weight += static_cast<double>(seeds[s].weight);
  for (int k = lane; k < l.count[row]; k += 32) {
    const std::size_t p = static_cast<std::size_t>(row) * l.capacity + k;
    const double distance = l.distances[p];
    if (!(distance < cutoff) || distance <= 0.0) continue;
    double along = 0.0;
    energy += 0.5 * repulsion(charge[l.slot[row]], charge[l.slot[l.j[p]]], distance, cutoff, &along);
    if (slope && k >= l.half[row]) slope[p] += static_cast<T>(weight * along);
  }
  energy = warp_sum(energy);
  for (int s = lane; s < n_seeds; s += 32)
    if (heads[seeds[s].head].repels) seeds[s].energies[row] += energy;
}

}  // namespace

template <class T> void repel(const Weights<T>& w, const List& l, const Seed<T>* seeds, int n_seeds, T* slope, cudaStream_t stream) {
  launch<Behind::kernel>(repel_kernel<T>, dim3(static_cast<unsigned>((l.atoms + kBlock / 32 - 1) / (kBlock / 32))), kBlock, 0, stream, l, w.charge, w.repulsion, w.heads, seeds, n_seeds, slope);
}
template void repel<float>(const Weights<float>&, const List&, const Seed<float>*, int, float*, cudaStream_t);
template void repel<double>(const Weights<double>&, const List&, const Seed<double>*, int, double*, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
