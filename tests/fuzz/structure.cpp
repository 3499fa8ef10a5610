// Structures of every kind through the contract of mfmd.hpp: cells, atoms, states, fragments, what is asked for; ghosts and pairs of a host's own.
#include <memory>

#include "target.hpp"

namespace {

struct Sample {
  std::vector<double> positions, cell;
  std::vector<int> numbers, fragment, first, neighbors, owner;
  std::vector<std::int64_t> ids;
  mfmd::HostPairs pairs{};
  mfmd::Structure structure;

  Sample(fuzz::Input& input, const mfmd::Model& model) {
    const bool raw = input.flag(), raw_cell = input.flag(), any_element = input.flag();
    const int atoms = input.below(9);
    for (int k = 0; k < 9; ++k) cell.push_back(input.number(raw_cell));
    for (bool& periodic : structure.periodic) periodic = input.flag();
    for (int k = 0; k < 3 * atoms; ++k) positions.push_back(input.number(raw));
    for (int k = 0; k < atoms; ++k) numbers.push_back(any_element ? input.take<std::int32_t>() : model.elements()[static_cast<std::size_t>(input.below(static_cast<int>(model.elements().size())))]);
    for (int k = input.below(4); k--;) {
      const int charge = input.take<std::int8_t>() % 4, multiplicity = input.take<std::int8_t>() % 6;  // a model's weights are kept for every list of states
      structure.states.push_back({charge, multiplicity});
    }
    const bool fragments = input.flag(), host = input.flag();
    for (int k = 0; k < atoms && fragments; ++k) fragment.push_back(input.take<std::int8_t>());
    if (host && atoms) add_ghosts(input, atoms);
    structure.atoms = atoms;
    structure.positions = positions.data(), structure.numbers = numbers.data(), structure.cell = cell.data();
    structure.fragment = fragments ? fragment.data() : nullptr;
  }

  // Copies of atoms elsewhere; every atom is in the list of every other, as a host with a long cutoff has it.
  void add_ghosts(fuzz::Input& input, int atoms) {
    const int ghosts = input.below(8);
    for (int k = 0; k < ghosts; ++k) {
      owner.push_back(input.below(atoms));
      const auto of = static_cast<std::size_t>(owner.back());
      for (std::size_t a = 0; a < 3; ++a) positions.push_back(positions[3 * of + a] + input.number(false));
      numbers.push_back(numbers[of]);
      if (!fragment.empty()) fragment.push_back(fragment[of]);
    }
    for (int i = 0; i < atoms; ++i) {
      first.push_back(static_cast<int>(neighbors.size()));
      for (int j = 0; j < atoms + ghosts; ++j)
        if (j != i) neighbors.push_back(j);
    }
    first.push_back(static_cast<int>(neighbors.size()));
    for (int k = 0; k < atoms + ghosts; ++k) ids.push_back(1000 - k);
    pairs = {first.data(), neighbors.data(), 0};
    structure.ghosts = ghosts, structure.pairs = &pairs, structure.ids = ids.data();
    structure.fill_ghosts = [this, atoms](void* rows, std::size_t width) {
      for (std::size_t k = 0; k < owner.size(); ++k)
        std::memcpy(static_cast<char*>(rows) + (static_cast<std::size_t>(atoms) + k) * width, static_cast<char*>(rows) + static_cast<std::size_t>(owner[k]) * width, width);
    };
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<std::shared_ptr<const mfmd::Model>> models = [] {
    std::vector<std::shared_ptr<const mfmd::Model>> all;
    for (const std::string name : fuzz::kModels) all.push_back(mfmd::Model::parse(fuzz::made(name + ".safetensors"), name));
    return all;
  }();
  fuzz::Input input(data, size);
  const auto& model = models[static_cast<std::size_t>(input.below(static_cast<int>(models.size())))];
  mfmd::Options options;
  options.precision = input.flag() ? mfmd::Precision::double_ : mfmd::Precision::single_;
  options.tables = !input.flag();
  options.skin = 0.3;  // as the dense ones take long under the sanitizers
  mfmd::Request request;
  for (bool* wanted : {&request.forces, &request.virial, &request.atom_energies, &request.atom_virials, &request.error_bars, &request.domain, &request.allow_unseen_state}) *wanted = input.flag();
  for (int k = 1 + input.below(3); k--;) {
    const int head = input.take<std::int8_t>();
    request.terms.push_back({head < 0 ? head : head % (1 + static_cast<int>(model->levels().size())), input.flag() ? input.take<double>() : 1.0});
  }
  Sample sample(input, *model);
  mfmd::Workspace workspace(model, options);
  for (int step = 0; step < 2; ++step) try {
      fuzz::expect_finite(*model, request, workspace.evaluate(sample.structure, request));
      if (!sample.structure.pairs) mfmd::neighbor_list(sample.structure, model->cutoff());
      for (double& r : sample.positions) r += input.number(false) / 16.0;
    } catch (const mfmd::InputError&) {
    }
  return 0;
}
