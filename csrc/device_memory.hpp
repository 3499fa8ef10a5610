// Arrays on a CUDA device, and pinned ones on the host that copies can go to and from while kernels run: the twin of packing.hpp.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/cuda.hpp"

namespace mfmd {
namespace cuda {

template <class T, bool PINNED> class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(); }

  bool holds(std::size_t size) const { return data_ && size <= capacity_; }
  // Room for `size` elements; what it held is lost.
  void resize(std::size_t size) {
    release();
    const std::size_t wanted = size + (size * sizeof(T) < kSpare ? size / 8 + 1 : 0);
    void* p = nullptr;
    check(PINNED ? cudaMallocHost(&p, wanted * sizeof(T)) : cudaMalloc(&p, wanted * sizeof(T)), "memory for a structure of this size");
    data_ = static_cast<T*>(p);
    capacity_ = wanted;
  }
  T* get() const { return data_; }

 private:
  static constexpr std::size_t kSpare = std::size_t{1} << 24;  // bytes up to which there is an eighth more, for structures of about the same size

  void release() {
    if (data_) static_cast<void>(PINNED ? cudaFreeHost(data_) : cudaFree(data_));
    data_ = nullptr;
    capacity_ = 0;
  }
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};
template <class T> using DeviceMemory = Memory<T, false>;
template <class T> using PinnedMemory = Memory<T, true>;

}  // namespace cuda
}  // namespace mfmd
