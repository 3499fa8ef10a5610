// What a model was trained on, on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "device_memory.hpp"
#include "kernels/domain.hpp"

namespace mfmd {
namespace cuda {

class DeviceDomain {
 public:
  const Domain& get() const { return domain_; }

  // Once: later calls do nothing.
  void give(const Domain& host, cudaStream_t stream) {
    if (domain_.slots) return;
    const std::size_t slots = static_cast<std::size_t>(host.slots), size = slots * static_cast<std::size_t>(host.F);
    nearest_.resize(slots * slots), neighbors_.resize(2 * slots), ranges_.resize(3 * size);
    const auto copy = [&](auto* to, const auto* from, std::size_t count) {
      check(cudaMemcpyAsync(to, from, count * sizeof *from, cudaMemcpyHostToDevice, stream), "a copy of what the model was trained on");
    };
    copy(nearest_.get(), host.nearest, slots * slots);
    copy(neighbors_.get(), host.neighbors, 2 * slots);
    std::size_t k = 0;
    for (const float* from : {host.low, host.high, host.per}) copy(ranges_.get() + k++ * size, from, size);
    check(cudaStreamSynchronize(stream), "a copy of what the model was trained on");
    domain_ = {host.slots, host.F, host.cutoff, nearest_.get(), neighbors_.get(), ranges_.get(), ranges_.get() + size, ranges_.get() + 2 * size};
  }

 private:
  Domain domain_ = {};  // its arrays
  DeviceMemory<double> nearest_;
  DeviceMemory<int> neighbors_;
  DeviceMemory<float> ranges_;
};

}  // namespace cuda
}  // namespace mfmd
