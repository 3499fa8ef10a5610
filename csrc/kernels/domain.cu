// How far each atom is outside what the model was trained on; the twin of what engine.cpp does row by row.
#include "cuda.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kBlock = 128;

template <class T> __global__ void of_rows(List l, Domain d, const T* features, Excess* out) {
  wait_for_what_is_before();
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= l.atoms) return;
  const std::size_t first = static_cast<std::size_t>(row) * l.capacity;
  const int count = l.count[row] < l.capacity ? l.count[row] : l.capacity;
  out[row] = excess(d, l.slot[row], count, l.j + first, l.distances + first, l.slot, l.order, features + static_cast<std::size_t>(row) * d.F, [&](int atom) { return l.ids ? l.ids[atom] : atom; });
}

}  // namespace

template <class T> void find_excess(const List& l, const Domain& d, const T* features, Excess* out, cudaStream_t stream) {
  launch<Behind::kernel>(of_rows<T>, dim3(static_cast<unsigned>((l.atoms + kBlock - 1) / kBlock)), kBlock, 0, stream, l, d, features, out);
}
template void find_excess<float>(const List&, const Domain&, const float*, Excess*, cudaStream_t);
template void find_excess<double>(const List&, const Domain&, const double*, Excess*, cudaStream_t);

}  // namespace cuda
}  // namespace mfmd
