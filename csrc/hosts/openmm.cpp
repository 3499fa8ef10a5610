// The OpenMM host: a plugin with a force and kernel of its own, without torch and Python. It is compiled against the OpenMM that loads
// it, and known to Python only as the XML that mfmd/hosts/openmm.py writes and XmlSerializer reads.
#include "openmm.hpp"

#include <openmm/Kernel.h>
#include <openmm/KernelFactory.h>
#include <openmm/Platform.h>
#include <openmm/internal/ForceImpl.h>
#include <openmm/reference/ReferencePlatform.h>
#include <openmm/serialization/SerializationNode.h>
#include <openmm/serialization/SerializationProxy.h>
#include <sched.h>

#include <algorithm>
#include <locale>
#include <mutex>
#include <sstream>

#include "../archive.hpp"

namespace mfmd::openmm {

using OpenMM::SerializationNode;

// ---------------------------------------------------------------------------------------------- in a Context

// Evaluates a model on the chosen atoms of a Context, and remembers the last answer. Integrators of several time steps ask for the same again: at the
// end of one step and the beginning of the next, and for a small model that one force adds and another takes away. So the forces of a
// Context that have model and atoms in common share one of these.
class Evaluator {
 public:
  Evaluator(const Force& force, const Options& options, std::vector<State> states) : force_(force), options_(options), states_(std::move(states)), workspace_(force.model, options) {
    positions_.resize(3 * force.atoms.size() + 9);
    asked_.allow_unseen_state = force.allow_unseen_state;
  }

  bool serves(const Force& force, const Options& options) const {
    return force.model == force_.model && force.atoms == force_.atoms && force.numbers == force_.numbers && force.periodic == force_.periodic &&
           force.states == force_.states && force.fragment == force_.fragment && force.allow_unseen_state == force_.allow_unseen_state && options.precision == options_.precision && options.threads == options_.threads;
  }

  // The result for these terms, and what to multiply its energy and forces with: 1 or -1.
  std::pair<const Result&, double> evaluate(const OpenMM::ReferencePlatform::PlatformData& data, std::vector<Term> terms, bool forces) {
    const std::size_t n = force_.atoms.size();
    for (std::size_t k = 0; k < n; ++k)
      for (int a = 0; a < 3; ++a) positions_[3 * k + static_cast<std::size_t>(a)] = kAngstrom * (*data.positions)[static_cast<std::size_t>(force_.atoms[k])][a];
    double* const cell = positions_.data() + 3 * n;
    if (force_.periodic)
      for (int v = 0; v < 3; ++v)
        for (int a = 0; a < 3; ++a) cell[3 * v + a] = kAngstrom * data.periodicBoxVectors[v][a];
    if (last_ && positions_ == seen_ && (asked_.forces || !forces))
      for (const double sign : {1.0, -1.0})
        if (std::equal(terms.begin(), terms.end(), asked_.terms.begin(), asked_.terms.end(),
                       [&](const Term& now, const Term& then) { return now.head == then.head && now.weight == sign * then.weight; }))
          return {*last_, sign};
    Structure s;
    s.atoms = static_cast<int>(n);
    s.positions = positions_.data();
    s.numbers = force_.numbers.data();
    s.cell = cell;
    for (bool& p : s.periodic) p = force_.periodic;
    s.states = states_;
    s.fragment = force_.fragment.empty() ? nullptr : force_.fragment.data();
    asked_.forces = forces;
    asked_.terms = std::move(terms);
    last_ = nullptr;  // stays so where the evaluation throws
    last_ = &workspace_.evaluate(s, asked_);
    seen_ = positions_;
    return {*last_, 1.0};
  }

 private:
  const Force force_;
  const Options options_;
  const std::vector<State> states_;
  Workspace workspace_;
  std::vector<double> positions_, seen_;  // of the chosen atoms, then the cell: now, and in the last evaluation
  Request asked_;
  const Result* last_ = nullptr;
};

// For the platforms Reference and CPU, whose data are the same.
class HostKernel final : public Kernel {
 public:
  HostKernel(std::string of, const OpenMM::Platform& on, ContextImpl& context) : Kernel(std::move(of), on), context_(context) {}

  void initialize(const System& system, const Force& force) override {
    check_atoms(system, force);
    force_ = force;
    Options options;
    options.precision = force.single ? Precision::single_ : Precision::double_;
    options.threads = force.threads > 0 ? force.threads : cores();
    static std::mutex mutex;
    static std::multimap<const ContextImpl*, std::weak_ptr<Evaluator>> known;
    std::lock_guard<std::mutex> lock(mutex);
    for (auto k = known.begin(); k != known.end();) {
      const auto evaluator = k->second.lock();
      if (evaluator && k->first == &context_ && evaluator->serves(force, options)) evaluator_ = evaluator;
      k = evaluator ? std::next(k) : known.erase(k);
    }
    if (evaluator_) return;
    known.emplace(&context_, evaluator_ = as_openmm([&] { return std::make_shared<Evaluator>(force, options, states_of(force)); }));
  }

  double execute(ContextImpl& context, bool forces) override {
    auto* data = reinterpret_cast<OpenMM::ReferencePlatform::PlatformData*>(context.getPlatformData());
    return as_openmm([&] {
      const auto [result, sign] = evaluator_->evaluate(*data, terms_of(context, force_), forces);
      if (forces)
        for (std::size_t k = 0; k < force_.atoms.size(); ++k)
          for (int a = 0; a < 3; ++a) (*data->forces)[static_cast<std::size_t>(force_.atoms[k])][a] += sign * kForceUnit * result.forces[3 * k + static_cast<std::size_t>(a)];
      for (std::size_t t = 0; t < force_.terms.size(); ++t)
        if (const WeightedHead& term = force_.terms[t]; !term.parameter.empty())
          (*data->energyParameterDerivatives)[term.parameter] += kKJPerMol * term.weight * result.term_energies[t];
      return sign * kKJPerMol * result.energy;
    });
  }

 private:
  static int cores() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }

  ContextImpl& context_;
  Force force_;
  std::shared_ptr<Evaluator> evaluator_;
};

class Impl final : public OpenMM::ForceImpl {
 public:
  explicit Impl(const Force& owner) : owner_(owner) {}
  void initialize(ContextImpl& context) override {
    kernel_ = context.getPlatform().createKernel(Kernel::Name(), context);
    kernel_.getAs<Kernel>().initialize(context.getSystem(), owner_);
  }
  const OpenMM::Force& getOwner() const override { return owner_; }
  void updateContextState(ContextImpl&, bool&) override {}  // forces computed before stay valid
  double calcForcesAndEnergy(ContextImpl& context, bool forces, bool, int groups) override {
    return groups & (1 << owner_.getForceGroup()) ? kernel_.getAs<Kernel>().execute(context, forces) : 0.0;
  }
  std::map<std::string, double> getDefaultParameters() override { return owner_.parameters; }
  std::vector<std::string> getKernelNames() override { return {Kernel::Name()}; }
  std::vector<std::pair<int, int>> getBondedParticles() const override { return owner_.bonds; }  // a barostat moves what is bonded as one

 private:
  const Force& owner_;
  OpenMM::Kernel kernel_;
};

OpenMM::ForceImpl* Force::createImpl() const { return new Impl(*this); }

class Factory final : public OpenMM::KernelFactory {
 public:
  OpenMM::KernelImpl* createKernelImpl(std::string name, const OpenMM::Platform& platform, ContextImpl& context) const override {
    return new HostKernel(std::move(name), platform, context);
  }
};

// ---------------------------------------------------------------------------------------------- as XML

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string to_base64(const std::string& bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t k = 0; k < bytes.size(); k += 3) {
    unsigned group = 0;
    for (std::size_t b = 0; b < 3; ++b) group = group << 8 | (k + b < bytes.size() ? static_cast<unsigned char>(bytes[k + b]) : 0u);
    for (std::size_t d = 0; d < 4; ++d) out += k + d <= bytes.size() ? kDigits[group >> (18 - 6 * d) & 63] : '=';
  }
  return out;
}

std::string from_base64(const std::string& text) {
  std::vector<int> value(256, -1);
  for (int d = 0; d < 64; ++d) value[static_cast<unsigned char>(kDigits[d])] = d;
  std::string out;
  out.reserve(text.size() / 4 * 3);
  unsigned group = 0;
  int bits = 0;
  for (const char c : text) {
    const int v = value[static_cast<unsigned char>(c)];
    if (c == '=') break;
    if (v < 0) throw OpenMMException("mfmd: the model in the force is damaged (it is not Base64)");
    group = group << 6 | static_cast<unsigned>(v);
    if ((bits += 6) >= 8) out += static_cast<char>(group >> (bits -= 8) & 255);
  }
  return out;
}

std::string join(const std::vector<int>& values) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  for (const int v : values) out << v << ' ';
  return out.str();
}

// OpenMM's own readers take what is no number for zero.
template <class T> T value(const SerializationNode& node, const std::string& name) {
  std::istringstream in(node.getStringProperty(name));
  in.imbue(std::locale::classic());
  T out{};
  if (!(in >> out) || !(in >> std::ws).eof()) throw OpenMMException("mfmd: `" + name + "` of the force is '" + node.getStringProperty(name) + "', and no such number is wanted");
  return out;
}

std::vector<int> whole_numbers(const SerializationNode& node, const std::string& name) {
  std::istringstream in(node.getStringProperty(name));
  in.imbue(std::locale::classic());
  std::vector<int> values;
  for (int v; !(in >> std::ws).eof(); values.push_back(v))
    if (!(in >> v)) throw OpenMMException("mfmd: `" + name + "` of the force is no list of whole numbers");
  return values;
}

// Models of this process by the hash of their bytes: copies of a System share their weights.
std::shared_ptr<const Model> shared_model(std::string bytes) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<const Model>> known;
  const std::string key = sha256(bytes);
  std::lock_guard<std::mutex> lock(mutex);
  auto model = known[key].lock();
  if (!model) known[key] = model = Model::parse(std::move(bytes), "the model in the System");
  return model;
}

constexpr int kVersion = 2;

class Proxy final : public OpenMM::SerializationProxy {
 public:
  Proxy() : SerializationProxy("MfmdForce") {}

  void serialize(const void* object, SerializationNode& node) const override {
    const Force& force = *static_cast<const Force*>(object);
    // What version 1 can say an older mfmd reads.
    const bool plain = force.states.size() == 1 && force.states[0].charge == 0 && force.states[0].multiplicity <= 1 && force.fragment.empty() && !force.allow_unseen_state;
    node.setIntProperty("version", plain ? 1 : kVersion);
    node.setIntProperty("forceGroup", force.getForceGroup());
    node.setStringProperty("name", force.getName());
    node.setBoolProperty("periodic", force.periodic);
    node.setBoolProperty("single", force.single);
    node.setIntProperty("threads", force.threads);
    node.setStringProperty("atoms", join(force.atoms));
    node.setStringProperty("numbers", join(force.numbers));
    std::vector<int> ends;
    for (const auto& bond : force.bonds) ends.push_back(bond.first), ends.push_back(bond.second);
    node.setStringProperty("bonds", join(ends));
    if (!plain) {
      std::vector<int> pairs;
      for (const State& state : force.states) pairs.push_back(state.charge), pairs.push_back(state.multiplicity);
      node.setStringProperty("states", join(pairs));
      node.setStringProperty("fragment", join(force.fragment));
      node.setBoolProperty("allowUnseenState", force.allow_unseen_state);
    }
    SerializationNode& terms = node.createChildNode("Terms");
    for (const WeightedHead& t : force.terms)
      terms.createChildNode("Term").setIntProperty("head", t.head).setDoubleProperty("weight", t.weight).setStringProperty("parameter", t.parameter);
    SerializationNode& parameters = node.createChildNode("Parameters");
    for (const auto& [name, value] : force.parameters) parameters.createChildNode("Parameter").setStringProperty("name", name).setDoubleProperty("default", value);
    node.createChildNode("Model").setStringProperty("safetensors", to_base64(force.model->bytes()));
  }

  void* deserialize(const SerializationNode& node) const override {
    const int version = value<int>(node, "version");
    if (version < 1 || version > kVersion)
      throw OpenMMException("mfmd: the force was written in format " + std::to_string(version) + "; install a newer mfmd");
    auto force = std::make_unique<Force>();
    force->setForceGroup(value<int>(node, "forceGroup"));
    force->setName(node.getStringProperty("name"));
    force->periodic = value<bool>(node, "periodic");
    force->single = value<bool>(node, "single");
    if ((force->threads = value<int>(node, "threads")) < 0) throw OpenMMException("mfmd: `threads` of the force is " + std::to_string(force->threads) + "; it is how many, or 0 for every core");
    force->atoms = whole_numbers(node, "atoms");
    force->numbers = whole_numbers(node, "numbers");
    if (force->atoms.size() != force->numbers.size()) throw OpenMMException("mfmd: the force has not one atomic number an atom");
    const std::vector<int> ends = whole_numbers(node, "bonds");
    if (ends.size() % 2) throw OpenMMException("mfmd: the force has a bond with one end");
    for (std::size_t k = 0; k < ends.size(); k += 2) force->bonds.emplace_back(ends[k], ends[k + 1]);
    if (version > 1) {
      const std::vector<int> pairs = whole_numbers(node, "states");
      if (pairs.size() % 2 || pairs.empty()) throw OpenMMException("mfmd: the force has states that are not pairs of charge and multiplicity");
      force->states.clear();
      for (std::size_t k = 0; k < pairs.size(); k += 2) force->states.push_back({pairs[k], pairs[k + 1]});
      force->fragment = whole_numbers(node, "fragment");
      if (!force->fragment.empty() && force->fragment.size() != force->atoms.size()) throw OpenMMException("mfmd: the force has not one fragment an atom");
      force->allow_unseen_state = value<bool>(node, "allowUnseenState");
    }
    for (const SerializationNode& p : node.getChildNode("Parameters").getChildren())
      force->parameters[p.getStringProperty("name")] = value<double>(p, "default");
    for (const SerializationNode& t : node.getChildNode("Terms").getChildren()) {
      force->terms.push_back({value<int>(t, "head"), value<double>(t, "weight"), t.getStringProperty("parameter")});
      if (const std::string& name = force->terms.back().parameter; !name.empty() && !force->parameters.count(name))
        throw OpenMMException("mfmd: a term's weight is the parameter " + name + ", which the force does not have");
    }
    force->model = as_openmm([&] { return shared_model(from_base64(node.getChildNode("Model").getStringProperty("safetensors"))); });
    return force.release();
  }
};

}  // namespace mfmd::openmm

// What OpenMM calls when it loads the plugin.
extern "C" __attribute__((visibility("default"))) void registerPlatforms() {}
extern "C" __attribute__((visibility("default"))) void registerKernelFactories() {
  OpenMM::SerializationProxy::registerProxy(typeid(mfmd::openmm::Force), new mfmd::openmm::Proxy());
  for (int k = 0; k < OpenMM::Platform::getNumPlatforms(); ++k)
    if (OpenMM::Platform& platform = OpenMM::Platform::getPlatform(k); dynamic_cast<OpenMM::ReferencePlatform*>(&platform))
      platform.registerKernelFactory(mfmd::openmm::Kernel::Name(), new mfmd::openmm::Factory());
}
