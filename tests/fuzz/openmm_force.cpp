// What OpenMM has read from a System's XML, whatever it says of our force: deserialised, written again and evaluated in a Context.
#include <openmm/Context.h>
#include <openmm/Force.h>
#include <openmm/OpenMMException.h>
#include <openmm/Platform.h>
#include <openmm/System.h>
#include <openmm/VerletIntegrator.h>
#include <openmm/serialization/SerializationNode.h>
#include <openmm/serialization/SerializationProxy.h>

#include <memory>
#include <sstream>

#include "target.hpp"

extern "C" void registerKernelFactories();

namespace {

// Lines of `name value`, the name of a node's property; `+name` begins a child of the node before, `-` goes back to its parent. A value
// `@model` is that model, as the XML has it.
void read(std::istringstream& lines, OpenMM::SerializationNode& node, int depth) {
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    if (line[0] == '-') return;
    if (line[0] == '+' && depth < 4) {
      read(lines, node.createChildNode(line.substr(1)), depth + 1);
      continue;
    }
    const std::size_t space = line.find(' ');
    std::string value = space == std::string::npos ? "" : line.substr(space + 1);
    for (const std::string name : fuzz::kModels)
      if (value == "@" + name) value = fuzz::made(name + ".base64");
    node.setStringProperty(line.substr(0, space), value);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool registered = (registerKernelFactories(), true);
  (void) registered;
  OpenMM::SerializationNode node;
  std::istringstream lines(std::string(reinterpret_cast<const char*>(data), size));
  read(lines, node, 0);
  try {
    const auto& proxy = OpenMM::SerializationProxy::getProxy("MfmdForce");
    std::unique_ptr<OpenMM::Force> force(static_cast<OpenMM::Force*>(proxy.deserialize(node)));
    OpenMM::SerializationNode again;
    proxy.serialize(force.get(), again);
    const int atoms = 6;
    OpenMM::System system;
    system.addForce(force.release());
    std::vector<OpenMM::Vec3> positions;
    for (int k = 0; k < atoms; ++k) system.addParticle(1.0), positions.emplace_back(0.11 * k, 0.1 * (k % 2), 0.05 * (k % 3));
    OpenMM::VerletIntegrator integrator(0.001);
    OpenMM::Context context(system, integrator, OpenMM::Platform::getPlatform("Reference"));
    context.setPositions(positions);
    const OpenMM::State state = context.getState(OpenMM::State::Energy | OpenMM::State::Forces);
    fuzz::expect(std::isfinite(state.getPotentialEnergy()), "an energy is not finite");
    for (const auto& f : state.getForces()) fuzz::expect(std::isfinite(f[0]) && std::isfinite(f[1]) && std::isfinite(f[2]), "a force is not finite");
  } catch (const OpenMM::OpenMMException&) {
  }
  return 0;
}
