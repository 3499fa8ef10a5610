// What the gathering kernels read of a pair: direction, basis, and its place between two knots of the tables.
#include "../tables.hpp"
#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

template <class T> __global__ void of_pairs(List l, double first_knot, double per_log, int knots, T* u, T* basis, int* knot, T* hermite_of) {
  const int row = static_cast<int>(blockIdx.x), first = static_cast<int>(threadIdx.x);
  for (int k = first; k < l.count[row]; k += static_cast<int>(blockDim.x)) {
    const std::size_t p = static_cast<std::size_t>(row) * l.capacity + k;
    const double r = l.distances[p];
    T direction[3], s[5];
    for (int a = 0; a < 3; ++a) direction[a] = static_cast<T>(l.vectors[3 * p + a] / r);
    tensor::symmetric(direction, s);
    basis[kMaxComponents * p] = static_cast<T>(tensor::kSqrt3);
    for (int a = 0; a < 3; ++a) {
      u[3 * p + a] = direction[a];
      basis[kMaxComponents * p + 1 + a] = static_cast<T>(tensor::kSqrt2) * direction[a];
    }
    for (int a = 0; a < 5; ++a) basis[kMaxComponents * p + 4 + a] = s[a];
    const double t = r > first_knot ? per_log * log(r / first_knot) : 0.0;  // closer ones are refused, but read no table from outside
    const int below = static_cast<int>(t) < knots - 2 ? static_cast<int>(t) : knots - 2;
    double value[6], slope[6];
    hermite(t - below, value, slope);
    knot[p] = below;
    for (int c = 0; c < 6; ++c) {
      hermite_of[kHermite * p + c] = static_cast<T>(value[c]);
      hermite_of[kHermite * p + 6 + c] = static_cast<T>(slope[c] * per_log / r);
    }
  }
}

}  // namespace

template <class T> void radial(const List& l, double first_knot, int knots, T* u, T* basis, int* knot, T* hermite_of, cudaStream_t stream) {
  const double per_log = (knots - 1) / std::log(l.cutoff / first_knot);
  launch(of_pairs<T>, dim3(static_cast<unsigned>(l.atoms)), 64, 0, stream, l, first_knot, per_log, knots, u, basis, knot, hermite_of);
}
template void radial<float>(const List&, double, int, float*, float*, int*, float*, cudaStream_t);
template void radial<double>(const List&, double, int, double*, double*, int*, double*, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
