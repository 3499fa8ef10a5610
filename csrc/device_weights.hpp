// The weights of a model on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>
#include <vector>

#include "device_memory.hpp"
#include "kernels/stages.hpp"

namespace mfmd {
namespace cuda {

// The weights on the device: copies of all arrays in one block, each at an aligned place. A workspace has its own: its host may work in a context of
// the device that is not the next one's.
template <class T> class DeviceWeights {
 public:
  DeviceWeights(const Weights<T>& host, bool tf32, cudaStream_t stream) { take(host, tf32, stream); }
  const Weights<T>& get() const { return weights_; }

  // Others, in their place.
  void take(const Weights<T>& host, bool tf32, cudaStream_t stream) {
    std::size_t bytes = 0;
    place(host, [&](const void*, std::size_t size) -> void* { bytes += aligned(size); return nullptr; });
    memory_.resize(bytes);
    std::size_t next = 0;
    place(host, [&](const void* from, std::size_t size) -> void* {
      unsigned char* to = memory_.get() + next;
      next += aligned(size);
      check(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream), "a copy of the weights");
      return to;
    });
    check(cudaStreamSynchronize(stream), "a copy of the weights");
    weights_.tf32 = tf32;
  }

 private:
  static std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  // Calls copy(array, bytes) for every array and keeps the address it returns.
  template <class Copy> void place(const Weights<T>& host, const Copy& copy) {
    weights_ = host;
    layers_.assign(host.layers, host.layers + host.n_layers);
    const auto of = [&](auto*& array, std::size_t size) {
      if (array) array = static_cast<std::remove_reference_t<decltype(array)>>(copy(array, size * sizeof *array));
    };
    const auto dense = [&](Dense<T>& d) {
      const std::size_t size = static_cast<std::size_t>(d.in) * d.out;
      of(d.w, size), of(d.wt, size), of(d.b, static_cast<std::size_t>(d.out));
    };
    const auto norm = [&](Norm<T>& n, int size) { of(n.weight, static_cast<std::size_t>(size)), of(n.bias, static_cast<std::size_t>(size)); };
    Weights<T>& w = weights_;
    const std::size_t F = static_cast<std::size_t>(w.F), slots = static_cast<std::size_t>(w.slots), table = F * w.intervals * kCoefficients * w.R;
    w.basis = {};  // the device has tables alone
    w.embedding_radial = {};
    of(w.charge, slots), of(w.factor, slots), of(w.first, slots * F), of(w.second, slots * F), of(w.self_embedding, slots * F), of(w.embedding_table, table);
    norm(w.embedding_norm, w.F), norm(w.readout_norm, w.R * w.F);
    dense(w.gate[0]), dense(w.gate[1]), dense(w.readout);
    for (int part = 0; part < w.R; ++part) dense(w.embedding_mix[part]);
    for (LayerWeights<T>& layer : layers_) {
      for (Dense<T>& d : layer.radial) d = {};
      of(layer.self, w.R * F), of(layer.table, table);
      for (int part = 0; part < w.R; ++part) dense(layer.mix_in[part]), dense(layer.mix_out[part]);
    }
    w.layers = layers_.data();  // read by the host
    heads_.assign(host.heads, host.heads + host.n_heads);
    for (HeadWeights<T>& head : heads_) {
      for (Perceptron<T>* p : {&head.value, &head.gate}) {
        for (int k = 0; k < p->layers; ++k) dense(p->hidden[k]);
        dense(p->out);
      }
      of(head.linear, slots * F), of(head.e0, slots);
    }
    w.heads = heads_.data();
    of(w.heads, heads_.size());
  }

  Weights<T> weights_;
  std::vector<LayerWeights<T>> layers_;
  std::vector<HeadWeights<T>> heads_;
  DeviceMemory<unsigned char> memory_;
};

}  // namespace cuda
}  // namespace mfmd
