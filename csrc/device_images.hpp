// What a host that has the periodic images itself gives a CUDA device: its pairs and names of atoms, and between layers the rows of its ghosts.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device_memory.hpp"
#include "kernels/device.hpp"
#include "mfmd.hpp"

namespace mfmd {
namespace cuda {

// Most neighbours of any atom.
inline int longest_row(const Structure& s) {
  int longest = 0;
  for (int i = 0; i < s.atoms; ++i) longest = std::max(longest, s.pairs->first[i + 1] - s.pairs->first[i]);
  return longest;
}

class DeviceImages {
 public:
  HostRows rows() const { return {first_.get(), j_.get()}; }
  const std::int64_t* ids() const { return named_ ? ids_.get() : nullptr; }
  void forget() { taken_.clear(), named_ = false; }

  // Pairs and names of a structure, where the key is another than that of what was taken last; whether it is.
  bool take(const Structure& s, const std::vector<std::int64_t>& key, cudaStream_t stream) {
    if (key == taken_) return false;
    forget();
    const std::size_t n = static_cast<std::size_t>(s.atoms), pairs = static_cast<std::size_t>(s.pairs->first[n]);
    const auto give = [&](auto& memory, const auto* from, std::size_t size) {
      if (!memory.holds(size)) memory.resize(size);
      if (size > 0) check(cudaMemcpyAsync(memory.get(), from, size * sizeof *from, cudaMemcpyHostToDevice, stream), "a copy of the host's pairs");
    };
    give(first_, s.pairs->first, n + 1);
    give(j_, s.pairs->j, pairs);
    if (s.ids) give(ids_, s.ids, n + static_cast<std::size_t>(s.ghosts));
    check(cudaStreamSynchronize(stream), "a copy of the host's pairs");
    named_ = s.ids, taken_ = key;
    return true;
  }

  // Has the host bring the rows of its ghosts, [atoms + ghosts][width bytes]. Nothing is under way afterwards.
  void fill(const Structure& s, void* rows, std::size_t width, cudaStream_t stream) {
    if (!s.fill_ghosts) return;
    const std::size_t own = static_cast<std::size_t>(s.atoms) * width, ghosts = static_cast<std::size_t>(s.ghosts) * width;
    if (!passing_.holds(own + ghosts)) passing_.resize(own + ghosts);
    check(cudaMemcpyAsync(passing_.get(), rows, own, cudaMemcpyDeviceToHost, stream), "a copy of rows");
    check(cudaStreamSynchronize(stream), "a copy of rows");
    s.fill_ghosts(passing_.get(), width);
    check(cudaMemcpyAsync(static_cast<unsigned char*>(rows) + own, passing_.get() + own, ghosts, cudaMemcpyHostToDevice, stream), "a copy of rows");
    check(cudaStreamSynchronize(stream), "a copy of rows");
  }

 private:
  std::vector<std::int64_t> taken_;
  bool named_ = false;
  DeviceMemory<int> first_, j_;
  DeviceMemory<std::int64_t> ids_;
  PinnedMemory<unsigned char> passing_;
};

}  // namespace cuda
}  // namespace mfmd
