// What stands behind a Workspace: engine.cpp on the CPU, engine.cu on a CUDA device.
#pragma once

#include "mfmd.hpp"

namespace mfmd {

struct Workspace::Data {
  virtual ~Data() = default;
  virtual const std::vector<Result>& evaluate(const Structure* structures, int count, const Request& request) = 0;
  virtual bool enqueue(const DeviceStructures& structures, const Request& request, const DeviceResults& results) = 0;
  virtual std::int64_t rebuilds() const = 0;
  virtual std::size_t ghost_width() const = 0;
  virtual const std::map<std::string, double>& stage_times() const = 0;
};

namespace cuda {
std::unique_ptr<Workspace::Data> workspace(std::shared_ptr<const Model> model, const Options& options);
}

}  // namespace mfmd
