// A stream of a workspace's own, the device a thread works on, and what a step launches, recorded as a graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda.hpp"

namespace mfmd {
namespace cuda {

class Stream {  // with an event at the end of what was last asked of a workspace
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "an event");
  }
  ~Stream() {
    static_cast<void>(cudaEventDestroy(done_));
    static_cast<void>(cudaStreamDestroy(stream));
  }
  cudaStream_t stream = nullptr;

  void mark(cudaStream_t on) {
    check(cudaEventRecord(done_, on), "an event");
    marked_ = true;
  }
  // Work on a stream begins after what was asked before, perhaps on another.
  void follow(cudaStream_t on) {
    if (marked_) check(cudaStreamWaitEvent(on, done_, 0), "an event");
  }
  void wait() {
    if (marked_) check(cudaEventSynchronize(done_), "an evaluation");
  }

 private:
  cudaEvent_t done_ = nullptr;
  bool marked_ = false;
};

// Makes a device current, and the one before again. Where it is current already nothing is touched: a host may have a context of its own there,
// which cudaSetDevice would replace.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "its number");
    if (device == before_) return;
    check(cudaSetDevice(device), "its number");
    switched_ = true;
  }
  ~OnDevice() {
    if (switched_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_ = 0;
  bool switched_ = false;
};

// A step's graph, and what it was recorded for.
class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() { reset(); }

  bool holds(const std::vector<std::int64_t>& key) const { return graph_ && key == key_; }

  // Records what launches(stream) enqueues there.
  template <class Launches> void record(const std::vector<std::int64_t>& key, cudaStream_t stream, const Launches& launches) {
    reset();
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "the recording of a graph");
    try {
      launches(stream);
    } catch (...) {
      if (cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph) static_cast<void>(cudaGraphDestroy(graph));
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "the recording of a graph");
    const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(status, "a graph");
    key_ = key;
  }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "a graph's launch"); }

 private:
  void reset() {
    if (graph_) static_cast<void>(cudaGraphExecDestroy(graph_));
    graph_ = nullptr;
  }
  std::vector<std::int64_t> key_;
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace cuda
}  // namespace mfmd
