// The native OpenMM force on the platform CUDA: positions and forces stay on the device, and the engine works on OpenMM's stream and in its context.
// The two small kernels around it are compiled by OpenMM when a Context is made.
#include "openmm.hpp"

#include <openmm/Kernel.h>
#include <openmm/KernelFactory.h>
#include <openmm/Platform.h>
#include <openmm/common/ComputeArray.h>
#include <openmm/common/ContextSelector.h>
#include <openmm/cuda/CudaContext.h>
#include <openmm/cuda/CudaPlatform.h>

#include <cmath>
#include <sstream>
#include <utility>

namespace mfmd::openmm {

namespace {

// place: where a particle of the System is among the force's atoms, or -1. OpenMM sorts particles as it likes; atomIndex says which one a row is.
const char* const kSource = R"(
KERNEL void mfmdTakePositions(GLOBAL const real4* RESTRICT posq, GLOBAL const real4* RESTRICT correction, GLOBAL const int* RESTRICT atomIndex,
                              GLOBAL const int* RESTRICT place, GLOBAL double* RESTRICT positions, int particles) {
    for (int row = GLOBAL_ID; row < particles; row += GLOBAL_SIZE) {
        int k = place[atomIndex[row]];
        if (k < 0)
            continue;
        double x = posq[row].x, y = posq[row].y, z = posq[row].z;
#ifdef USE_MIXED_PRECISION
        x += correction[row].x; y += correction[row].y; z += correction[row].z;
#endif
        positions[3*k] = ANGSTROM*x; positions[3*k+1] = ANGSTROM*y; positions[3*k+2] = ANGSTROM*z;
    }
}
KERNEL void mfmdGiveForces(GLOBAL const double* RESTRICT forces, GLOBAL const int* RESTRICT atomIndex, GLOBAL const int* RESTRICT place,
                           GLOBAL mm_ulong* RESTRICT forceBuffers, int particles, int padded) {
    for (int row = GLOBAL_ID; row < particles; row += GLOBAL_SIZE) {
        int k = place[atomIndex[row]];
        if (k < 0)
            continue;
        for (int a = 0; a < 3; a++)
            ATOMIC_ADD(&forceBuffers[row+a*padded], (mm_ulong) (mm_long) (FORCE_UNIT*forces[3*k+a]*0x100000000));
    }
}
)";

class CudaKernel final : public Kernel {
 public:
  CudaKernel(std::string of, const OpenMM::Platform& on, OpenMM::CudaContext& cu) : Kernel(std::move(of), on), cu_(cu) {}
  ~CudaKernel() override {
    OpenMM::ContextSelector here(cu_);  // the engine's memory is of this context
    workspace_.reset();
  }

  void initialize(const System& system, const Force& force) override {
    check_atoms(system, force);
    force_ = force;
    states_ = states_of(force);
    OpenMM::ContextSelector here(cu_);
    Options options;
    options.precision = force.single ? Precision::single_ : Precision::double_;
    options.cuda = cu_.getDeviceIndex();
    workspace_ = as_openmm([&] { return std::make_unique<Workspace>(force.model, options); });
    const int n = static_cast<int>(force.atoms.size());
    std::vector<int> place(static_cast<std::size_t>(system.getNumParticles()), -1);
    for (int k = 0; k < n; ++k) place[static_cast<std::size_t>(force.atoms[static_cast<std::size_t>(k)])] = k;
    place_.initialize<int>(cu_, place.size(), "mfmdPlace");
    place_.upload(place);
    positions_.initialize<double>(cu_, static_cast<std::size_t>(3 * n), "mfmdPositions");
    forces_.initialize<double>(cu_, static_cast<std::size_t>(3 * n), "mfmdForces");
    cell_.initialize<double>(cu_, 9, "mfmdCell");
    energies_.initialize<double>(cu_, force.terms.size() + 1, "mfmdEnergies");
    for (const auto& parameter : force.parameters) cu_.addEnergyParameterDerivative(parameter.first);
    std::ostringstream angstrom, unit;
    angstrom.precision(17), unit.precision(17);
    angstrom << std::showpoint << kAngstrom, unit << std::showpoint << kForceUnit;
    const OpenMM::ComputeProgram program = cu_.compileProgram(kSource, {{"ANGSTROM", angstrom.str()}, {"FORCE_UNIT", unit.str()}});
    take_ = program->createKernel("mfmdTakePositions");
    give_ = program->createKernel("mfmdGiveForces");
  }

  double execute(ContextImpl& context, bool forces) override {
    OpenMM::ContextSelector here(cu_);
    if (!linked_) link();
    DeviceStructures s;
    if (force_.periodic) {
      OpenMM::Vec3 box[3];
      cu_.getPeriodicBoxVectors(box[0], box[1], box[2]);
      std::vector<double> cell(9);
      for (std::size_t v = 0; v < 3; ++v)
        for (std::size_t a = 0; a < 3; ++a) cell[3 * v + a] = kAngstrom * box[v][static_cast<int>(a)];
      if (cell != box_) cell_.upload(box_ = cell);
      s.cells = address(cell_);
    }
    take_->execute(cu_.getNumAtoms());
    const int n = static_cast<int>(force_.atoms.size());
    s.atoms = &n;
    s.numbers = force_.numbers.data();
    s.positions = address(positions_);
    for (bool& p : s.periodic) p = force_.periodic;
    s.states = &states_;
    s.fragment = fragment_of(force_);
    s.stream = cu_.getCurrentStream();
    Request request;
    request.terms = terms_of(context, force_);
    request.forces = forces;
    request.allow_unseen_state = force_.allow_unseen_state;
    const bool again = std::exchange(again_, false);
    as_openmm([&] { return workspace_->enqueue(s, request, {address(energies_), forces ? address(forces_) : nullptr, nullptr}); });
    // Fixed-point forces know no NaN, so a step that was refused, or had too little room, must not go on: OpenMM asks again for what is not valid, and the
    // engine then makes room or throws. The host waits for these few numbers.
    std::vector<double> energies;
    energies_.download(energies);
    if (!std::isfinite(energies[0])) {
      if (again) throw OpenMMException("mfmd: the energy is not finite; the structure is far outside what the model was trained on");
      again_ = true;
      cu_.setForcesValid(false);
      return 0.0;
    }
    if (forces) give_->execute(cu_.getNumAtoms());
    for (std::size_t t = 0; t < force_.terms.size(); ++t)
      if (const WeightedHead& term = force_.terms[t]; !term.parameter.empty())
        cu_.getEnergyParamDerivWorkspace()[term.parameter] += kKJPerMol * term.weight * energies[t + 1];
    return kKJPerMol * energies[0];
  }

 private:
  double* address(OpenMM::ComputeArray& array) { return reinterpret_cast<double*>(cu_.unwrap(array).getDevicePointer()); }

  // OpenMM's own arrays exist only when every force has been initialised.
  void link() {
    if (!force_.periodic && cu_.getNonbondedUtilities().getUsePeriodic())
      throw OpenMMException("mfmd: on the platform CUDA a System with periodic forces moves atoms into the box one by one, which a model without periodic boundaries "
                            "cannot follow; give the topology its box, or use the platform CPU");
    take_->addArg(cu_.getPosq());
    take_->addArg(cu_.getUseMixedPrecision() ? cu_.getPosqCorrection() : cu_.getPosq());
    take_->addArg(cu_.getAtomIndexArray());
    take_->addArg(place_);
    take_->addArg(positions_);
    take_->addArg(cu_.getNumAtoms());
    give_->addArg(forces_);
    give_->addArg(cu_.getAtomIndexArray());
    give_->addArg(place_);
    give_->addArg(cu_.getLongForceBuffer());
    give_->addArg(cu_.getNumAtoms());
    give_->addArg(cu_.getPaddedNumAtoms());
    linked_ = true;
  }

  OpenMM::CudaContext& cu_;
  Force force_;
  std::vector<State> states_;
  std::unique_ptr<Workspace> workspace_;
  OpenMM::ComputeArray place_, positions_, forces_, cell_, energies_;
  OpenMM::ComputeKernel take_, give_;
  std::vector<double> box_;
  bool linked_ = false, again_ = false;
};

class Factory final : public OpenMM::KernelFactory {
 public:
  OpenMM::KernelImpl* createKernelImpl(std::string name, const OpenMM::Platform& platform, ContextImpl& context) const override {
    const auto* data = static_cast<OpenMM::CudaPlatform::PlatformData*>(context.getPlatformData());
    if (data->contexts.size() > 1) throw OpenMMException("mfmd: the force runs on one CUDA device; set DeviceIndex to one of them");
    return new CudaKernel(std::move(name), platform, *data->contexts[0]);
  }
};

}  // namespace

}  // namespace mfmd::openmm

extern "C" __attribute__((visibility("default"))) void registerPlatforms() {}
extern "C" __attribute__((visibility("default"))) void registerKernelFactories() {
  for (int k = 0; k < OpenMM::Platform::getNumPlatforms(); ++k)
    if (OpenMM::Platform& platform = OpenMM::Platform::getPlatform(k); platform.getName() == "CUDA")
      platform.registerKernelFactory(mfmd::openmm::Kernel::Name(), new mfmd::openmm::Factory());
}
