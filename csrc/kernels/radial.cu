// What the gathering kernels read of a pair: the basis, and its place in the tables.
#include "../tables.hpp"
#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T> __global__ void of_pairs(List l, Intervals intervals, T* basis, int* interval, T* place) {
  wait_for_what_is_before();
  const int row = static_cast<int>(blockIdx.x), first = static_cast<int>(threadIdx.x);
  for (int k = first; k < l.count[row]; k += static_cast<int>(blockDim.x)) {
    const std::size_t p = static_cast<std::size_t>(row) * l.capacity + k;
    const double inverse = 1.0 / l.distances[p];
    T u[3], s[5];
    for (int a = 0; a < 3; ++a) u[a] = static_cast<T>(l.vectors[3 * p + a] * inverse);
    tensor::symmetric(u, s);
    basis[kMaxComponents * p] = static_cast<T>(tensor::kSqrt3);
    for (int a = 0; a < 3; ++a) basis[kMaxComponents * p + 1 + a] = static_cast<T>(tensor::kSqrt2) * u[a];
    for (int a = 0; a < 5; ++a) basis[kMaxComponents * p + 4 + a] = s[a];
    const Place at = place_of(intervals, inverse < 1.0 / kFirstKnot ? inverse : 1.0 / kFirstKnot);  // closer ones are refused, but read no table from outside
    interval[p] = at.interval;
    place[2 * p] = static_cast<T>(at.t);
    place[2 * p + 1] = static_cast<T>(at.rate);
  }
}

}  // namespace

template <class T> void radial(const List& l, int intervals, T* basis, int* interval, T* place, cudaStream_t stream) {
  launch<Behind::kernel>(of_pairs<T>, dim3(static_cast<unsigned>(l.atoms)), 64, 0, stream, l, Intervals(intervals, l.cutoff), basis, interval, place);
}
template void radial<float>(const List&, int, float*, int*, float*, cudaStream_t);
template void radial<double>(const List&, int, double*, int*, double*, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
