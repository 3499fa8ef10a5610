// A stream of a workspace's own, the device a thread works on, and what steps launch, recorded as graphs.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <list>
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

// The graphs of the last few kinds of step, so that a caller may take turns between them.
class Recordings {
 public:
  // Enqueues on a stream what launches(stream) does. A key says what the step is, and is worth as much as the buffers of its generation. A kind of step
  // that is met for the first time is launched kernel by kernel, which loads them: while a graph is recorded, nothing may be loaded. From the second
  // time on it is a graph, recorded on a stream where nothing else is going on.
  template <class Launches> void run(std::int64_t generation, const std::vector<std::int64_t>& key, cudaStream_t recorder, cudaStream_t stream, const Launches& launches) {
    if (generation != generation_) kept_.clear();
    generation_ = generation;
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Recording& r) { return r.key == key; });
    if (found == kept_.end()) {
      launches(stream);
      kept_.emplace_front(key);
      if (kept_.size() > kKept) kept_.pop_back();
      return;
    }
    kept_.splice(kept_.begin(), kept_, found);
    if (!found->graph) found->record(recorder, launches);
    check(cudaGraphLaunch(found->graph, stream), "a graph's launch");
  }

 private:
  static constexpr std::size_t kKept = 8;

  struct Recording {
    explicit Recording(const std::vector<std::int64_t>& of) : key(of) {}
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() {
      if (graph) static_cast<void>(cudaGraphExecDestroy(graph));  // one that still runs goes when it has ended
    }
    template <class Launches> void record(cudaStream_t stream, const Launches& launches) {
      cudaGraph_t recorded = nullptr;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "the recording of a graph");
      try {
        launches(stream);
      } catch (...) {
        if (cudaStreamEndCapture(stream, &recorded) == cudaSuccess && recorded) static_cast<void>(cudaGraphDestroy(recorded));
        throw;
      }
      check(cudaStreamEndCapture(stream, &recorded), "the recording of a graph");
      const cudaError_t status = cudaGraphInstantiate(&graph, recorded, 0);
      static_cast<void>(cudaGraphDestroy(recorded));
      check(status, "a graph");
    }
    const std::vector<std::int64_t> key;
    cudaGraphExec_t graph = nullptr;
  };
  std::list<Recording> kept_;  // the last one used first
  std::int64_t generation_ = 0;
};

}  // namespace cuda
}  // namespace mfmd
