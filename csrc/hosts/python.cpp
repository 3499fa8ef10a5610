// The compiled module mfmd._engine. Checks of meaning live in the core; here only shapes are checked.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "../mfmd.hpp"
#include "../tables.hpp"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<int, py::array::c_style | py::array::forcecast>;

mfmd::Structure structure(const Doubles& positions, const Ints& numbers, const Doubles& cell, const std::vector<bool>& pbc) {
  if (positions.ndim() != 2 || positions.shape(1) != 3) throw mfmd::InputError("positions must have the shape (atoms, 3)");
  if (numbers.ndim() != 1 || numbers.shape(0) != positions.shape(0))
    throw mfmd::InputError("numbers must hold one atomic number for each row of positions");
  if (cell.ndim() != 2 || cell.shape(0) != 3 || cell.shape(1) != 3) throw mfmd::InputError("cell must have the shape (3, 3)");
  if (pbc.size() != 3) throw mfmd::InputError("pbc must hold three booleans");
  mfmd::Structure s;
  s.atoms = static_cast<int>(positions.shape(0));
  s.positions = positions.data();
  s.numbers = numbers.data();
  s.cell = cell.data();
  for (std::size_t k = 0; k < 3; ++k) s.periodic[k] = pbc[k];
  return s;
}

using States = std::vector<std::pair<int, int>>;  // (charge, multiplicity) of the fragments
std::vector<mfmd::State> states_of(const States& pairs) {
  std::vector<mfmd::State> out;
  for (const auto& [charge, multiplicity] : pairs) out.push_back({charge, multiplicity});
  return out;
}
// Which of them each atom belongs to; null where nothing is said of the atoms.
const int* fragments_of(const Ints& fragment, py::ssize_t atoms) {
  if (fragment.size() == 0) return nullptr;
  if (fragment.ndim() != 1 || fragment.size() != atoms) throw mfmd::InputError("fragment must hold one number for each atom");
  return fragment.data();
}

template <class T> py::array_t<T> array(const std::vector<T>& v, std::vector<py::ssize_t> shape) {
  py::array_t<T> out(std::move(shape));
  std::copy(v.begin(), v.end(), out.mutable_data());
  return out;
}

// Python threads may share one: they take turns.
struct Workspace {
  Workspace(std::shared_ptr<const mfmd::Model> model, const mfmd::Options& options) : core(std::move(model), options) {}
  mfmd::Workspace core;
  std::mutex mutex;
};

py::dict dict(const mfmd::Result& result, const mfmd::Request& request, int atoms) {
  py::dict out;
  out["energy"] = result.energy;
  out["term_energies"] = array(result.term_energies, {static_cast<py::ssize_t>(result.term_energies.size())});
  if (request.forces) out["forces"] = array(result.forces, {atoms, 3});
  if (request.virial) out["virial"] = array(std::vector<double>(result.virial, result.virial + 9), {3, 3});
  if (request.atom_energies) out["atom_energies"] = array(result.atom_energies, {atoms});
  if (request.domain) out["grade"] = mfmd::grade(result.outside.by);
  if (request.domain) out["outside"] = result.outside.by > 0.0 ? py::object(py::str(result.outside.sentence)) : py::none();
  if (request.error_bars) out["term_errors"] = array(result.term_errors, {static_cast<py::ssize_t>(result.term_errors.size())});
  return out;
}

using Given = std::tuple<Doubles, Ints, Doubles, std::vector<bool>, States, Ints>;  // positions, numbers, cell, pbc, states, fragment

// Structures side by side; a dict of each.
std::vector<py::dict> evaluate(Workspace& workspace, const std::vector<Given>& given, const std::vector<std::pair<int, double>>& terms, bool forces,
                               bool virial, bool atom_energies, bool error_bars, bool domain, bool allow_unseen_state) {
  std::vector<mfmd::Structure> structures;
  for (const auto& [positions, numbers, cell, pbc, states, fragment] : given) {
    structures.push_back(structure(positions, numbers, cell, pbc));
    structures.back().states = states_of(states);
    structures.back().fragment = fragments_of(fragment, numbers.size());
  }
  mfmd::Request request;
  for (const auto& [head, weight] : terms) request.terms.push_back({head, weight});
  request.forces = forces;
  request.virial = virial;
  request.atom_energies = atom_energies;
  request.error_bars = error_bars;
  request.domain = domain;
  request.allow_unseen_state = allow_unseen_state;
  std::vector<mfmd::Result> results;
  {
    py::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(workspace.mutex);
    results = workspace.core.evaluate(structures, request);
  }
  std::vector<py::dict> out;
  for (std::size_t k = 0; k < results.size(); ++k) out.push_back(dict(results[k], request, structures[k].atoms));
  return out;
}

// Structures on a device; arrays there are given by their addresses.
void enqueue(Workspace& workspace, const Ints& atoms, const Ints& numbers, std::uintptr_t positions, std::uintptr_t cells, const std::vector<bool>& pbc,
             const std::vector<std::pair<int, double>>& terms, std::uintptr_t energies, std::uintptr_t forces, std::uintptr_t virials, std::uintptr_t stream,
             const std::vector<States>& states, const Ints& fragment, bool allow_unseen_state) {
  const auto address = [](std::uintptr_t a) { return reinterpret_cast<double*>(a); };
  if (atoms.ndim() != 1 || numbers.ndim() != 1 || std::accumulate(atoms.data(), atoms.data() + atoms.size(), py::ssize_t{0}) != numbers.size())
    throw mfmd::InputError("numbers must hold one atomic number for each of the structures' atoms");
  if (pbc.size() != 3) throw mfmd::InputError("pbc must hold three booleans");
  mfmd::DeviceStructures s;
  s.systems = static_cast<int>(atoms.size());
  s.atoms = atoms.data();
  s.numbers = numbers.data();
  s.positions = address(positions);
  s.cells = address(cells);
  for (std::size_t k = 0; k < 3; ++k) s.periodic[k] = pbc[k];
  s.stream = reinterpret_cast<void*>(stream);
  if (states.size() != static_cast<std::size_t>(s.systems)) throw mfmd::InputError("states must be those of each structure");
  std::vector<std::vector<mfmd::State>> of_systems;
  for (const States& pairs : states) of_systems.push_back(states_of(pairs));
  s.states = of_systems.data();
  s.fragment = fragments_of(fragment, numbers.size());
  mfmd::Request request;
  for (const auto& [head, weight] : terms) request.terms.push_back({head, weight});
  request.forces = forces != 0;
  request.virial = virials != 0;
  request.allow_unseen_state = allow_unseen_state;
  py::gil_scoped_release free;
  std::lock_guard<std::mutex> lock(workspace.mutex);
  workspace.core.enqueue(s, request, {address(energies), address(forces), address(virials)});
}

// A host with ghosts and a list of its own, as LAMMPS is one: ghost g is a copy of atom owner[g].
py::dict evaluate_with_ghosts(Workspace& workspace, const Doubles& positions, const Ints& numbers, const Ints& owner, const Ints& first,
                              const Ints& neighbors, int head, std::int64_t version) {
  const int ghosts = static_cast<int>(owner.shape(0)), atoms = static_cast<int>(positions.shape(0)) - ghosts;
  mfmd::Structure s;
  s.atoms = atoms;
  s.ghosts = ghosts;
  s.positions = positions.data();
  s.numbers = numbers.data();
  std::vector<std::int64_t> ids(static_cast<std::size_t>(atoms));
  std::iota(ids.begin(), ids.end(), 0);
  ids.insert(ids.end(), owner.data(), owner.data() + ghosts);
  s.ids = ids.data();
  const mfmd::HostPairs pairs{first.data(), neighbors.data(), version};
  s.pairs = &pairs;
  int filled = 0;
  s.fill_ghosts = [&](void* rows, std::size_t width) {
    ++filled;
    char* data = static_cast<char*>(rows);
    for (int g = 0; g < ghosts; ++g)
      std::copy_n(data + static_cast<std::size_t>(owner.at(g)) * width, width, data + static_cast<std::size_t>(atoms + g) * width);
  };
  mfmd::Request request;
  request.terms = {{head, 1.0}};
  request.virial = request.atom_virials = request.atom_energies = request.domain = true;
  const mfmd::Result& r = workspace.core.evaluate(s, request);
  py::dict out;
  out["energy"] = r.energy;
  out["forces"] = array(r.forces, {atoms, 3});
  out["virial"] = array(std::vector<double>(r.virial, r.virial + 9), {3, 3});
  out["atom_energies"] = array(r.atom_energies, {atoms});
  out["atom_virials"] = array(r.atom_virials, {atoms, 3, 3});
  out["outside"] = r.outside.sentence;
  out["filled"] = filled;
  return out;
}

}  // namespace

void bind_training(py::module_& m);  // training.cpp

PYBIND11_MODULE(_engine, m) {
  const py::object base = py::module_::import("mfmd").attr("Error");
  py::register_exception<mfmd::Error>(m, "EngineError", base);
  py::register_exception<mfmd::ModelFileError>(m, "ModelFileError", base);
  py::register_exception<mfmd::InputError>(m, "InputError", base);

  py::class_<mfmd::Model, std::shared_ptr<mfmd::Model>>(m, "Model")
      .def_static("load", [](const std::string& path) { return std::const_pointer_cast<mfmd::Model>(mfmd::Model::load(path)); })
      .def_static("parse", [](const py::bytes& bytes, const std::string& origin) {
        return std::const_pointer_cast<mfmd::Model>(mfmd::Model::parse(bytes, origin));
      })
      .def_property_readonly("levels", [](const mfmd::Model& model) {
        std::vector<std::string> names;
        for (const auto& level : model.levels()) names.push_back(level.name);
        return names;
      })
      .def_property_readonly("with_error_bars", [](const mfmd::Model& model) {
        std::vector<std::string> names;
        for (const auto& level : model.levels()) if (level.error_bars) names.push_back(level.name);
        return names;
      })
      .def_property_readonly("states", [](const mfmd::Model& model) {
        std::map<std::string, States> out;
        for (const auto& level : model.levels())
          for (const mfmd::State& state : level.states) out[level.name].emplace_back(state.charge, state.multiplicity);
        return out;
      })
      .def("level", &mfmd::Model::level)
      .def_property_readonly("cutoff", &mfmd::Model::cutoff)
      .def_property_readonly("has_domain", [](const mfmd::Model& model) { return model.domain() != nullptr; })
      .def_property_readonly("metadata", &mfmd::Model::metadata)
      .def_property_readonly("bytes", [](const mfmd::Model& model) { return py::bytes(model.bytes()); })
      .def_property_readonly("sha256", &mfmd::Model::sha256);

  py::class_<Workspace>(m, "Workspace")
      .def(py::init([](std::shared_ptr<mfmd::Model> model, const std::string& precision, int threads, bool tables, double skin, int cuda) {
             mfmd::Options options;
             options.precision = precision == "double" ? mfmd::Precision::double_ : precision == "tf32" ? mfmd::Precision::tf32 : mfmd::Precision::single_;
             options.threads = threads;
             options.tables = tables;
             options.skin = skin;
             options.cuda = cuda;
             return std::make_unique<Workspace>(std::move(model), options);
           }),
           py::arg("model"), py::arg("precision"), py::arg("threads"), py::arg("tables"), py::arg("skin"), py::arg("cuda"))
      .def_property_readonly("rebuilds", [](const Workspace& w) { return w.core.rebuilds(); })
      .def_property_readonly("stage_times", [](const Workspace& w) { return w.core.stage_times(); })
      .def("evaluate", &evaluate, py::arg("structures"), py::arg("terms"), py::arg("forces"), py::arg("virial"), py::arg("atom_energies"),
           py::arg("error_bars"), py::arg("domain"), py::arg("allow_unseen_state"))
      .def("enqueue", &enqueue)
      .def("evaluate_with_ghosts", &evaluate_with_ghosts);

  py::module_ training = m.def_submodule("training");
  bind_training(training);
  m.attr("closest") = mfmd::kFirstKnot;
  m.def("cuda_devices", &mfmd::cuda_devices);
  m.def("has_cuda", &mfmd::has_cuda);
  m.def("states_of", [](const Ints& numbers, const States& said, const Ints& fragment, bool periodic) {
    States out;
    for (const mfmd::State& state : mfmd::states_of(numbers.data(), static_cast<int>(numbers.size()), states_of(said), fragments_of(fragment, numbers.size()), periodic))
      out.emplace_back(state.charge, state.multiplicity);
    return out;
  });
  m.def("instruction_set", &mfmd::instruction_set);
  m.def("instruction_sets", &mfmd::instruction_sets);
  m.def("neighbor_list", [](const Doubles& positions, const Doubles& cell, const std::vector<bool>& pbc, double cutoff) {
    const Ints numbers(positions.ndim() ? positions.shape(0) : 0);
    const mfmd::NeighborList list = mfmd::neighbor_list(structure(positions, numbers, cell, pbc), cutoff);
    const auto n = static_cast<py::ssize_t>(list.i.size());
    return py::make_tuple(array(list.i, {n}), array(list.j, {n}), array(list.shifts, {n, 3}), array(list.vectors, {n, 3}));
  });
}
