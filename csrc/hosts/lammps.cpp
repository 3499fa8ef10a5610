// The LAMMPS host: `pair_style mfmd` as a plugin. LAMMPS owns the boxes, the ghosts and the neighbour list; rows of features and of their
// adjoints travel to ghost atoms between the layers, so that one cutoff of ghosts is enough for any number of layers.
// This file is MIT like the rest. A plugin compiled from it links to LAMMPS, which is GPL version 2, and is passed on under its terms.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../heads.hpp"
#include "../mfmd.hpp"
#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "input.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#include "utils.h"
#include "variable.h"
#ifndef MFMD_LAMMPS_VERSION  // compiled against a source tree
#include "version.h"
#define MFMD_LAMMPS_VERSION LAMMPS_VERSION
#endif

namespace mfmd::lammps {

using LAMMPS_NS::LAMMPS;

constexpr double kKcalPerMol = 96485.33212331001 / 4184.0;  // in an eV
// Standard atomic weights, amu, by atomic number.
const double kMasses[119] = {
    0, 1.008, 4.0026, 6.94, 9.01218, 10.81, 12.011, 14.007, 15.999, 18.9984, 20.1797, 22.9898, 24.305, 26.9815, 28.085, 30.9738,
    32.06, 35.45, 39.948, 39.0983, 40.078, 44.9559, 47.867, 50.9415, 51.9961, 54.938, 55.845, 58.9332, 58.6934, 63.546, 65.38,
    69.723, 72.63, 74.9216, 78.971, 79.904, 83.798, 85.4678, 87.62, 88.9058, 91.224, 92.9064, 95.95, 97.9072, 101.07, 102.906,
    106.42, 107.868, 112.414, 114.818, 118.71, 121.76, 127.6, 126.904, 131.293, 132.905, 137.327, 138.905, 140.116, 140.908, 144.242,
    144.913, 150.36, 151.964, 157.25, 158.925, 162.5, 164.93, 167.259, 168.934, 173.054, 174.967, 178.49, 180.948, 183.84, 186.207,
    190.23, 192.217, 195.084, 196.967, 200.592, 204.38, 207.2, 208.98, 208.982, 209.987, 222.018, 223.02, 226.025, 227.028, 232.038,
    231.036, 238.029, 237.048, 244.064, 243.061, 247.07, 247.07, 251.08, 252.083, 257.095, 258.098, 259.101, 262.11, 267.122,
    268.126, 271.134, 270.133, 269.134, 278.156, 281.165, 281.166, 285.177, 286.182, 289.19, 289.194, 293.204, 293.208, 294.214};
constexpr double kHeaviestHydrogen = 4.2;  // of a molecule whose heavy atoms have given mass to their hydrogens

class Pair final : public LAMMPS_NS::Pair {
 public:
  explicit Pair(LAMMPS* host) : LAMMPS_NS::Pair(host) {
    single_enable = 0;
    restartinfo = 0;  // as of every potential with a file: an input that reads a restart names style and coefficients anew
    one_coeff = 1;
    manybody_flag = 1;
    no_virial_fdotr_compute = 1;
    centroidstressflag = LAMMPS_NS::CENTROID_NOTAVAIL;
  }

  ~Pair() override {
    if (!allocated) return;
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }

  // pair_style mfmd [head NAME] [precision single|double|tf32] [threads N] [device cuda|cuda:N] [charge N] [multiplicity N] [allow_unseen_state yes|no]
  void settings(int narg, char** arg) override {
    head_.clear();
    options_ = Options();
    charge_said_ = allow_unseen_state_ = false;
    charge_ = multiplicity_ = 0;
    std::string device;
    bool threads_said = false;
    for (int i = 1; allocated && i <= atom->ntypes; ++i)  // coefficients are to be given anew
      for (int j = 1; j <= atom->ntypes; ++j) setflag[i][j] = 0;
    for (int k = 0; k < narg; k += 2) {
      const std::string key = arg[k], value = k + 1 < narg ? arg[k + 1] : "";
      if (value.empty()) fail("pair_style mfmd: " + key + " has no value");
      if (key == "head") head_ = value;
      else if (key == "precision" && (value == "single" || value == "double" || value == "tf32"))
        options_.precision = value == "single" ? Precision::single_ : value == "double" ? Precision::double_ : Precision::tf32;
      else if (key == "threads" && count(value) && std::stoi(value) > 0) options_.threads = std::stoi(value), threads_said = true;
      else if (key == "device" && (value == "cuda" || (value.rfind("cuda:", 0) == 0 && count(value.substr(5))))) device = value;
      else if (key == "charge" && whole(value)) charge_ = std::stoi(value), charge_said_ = true;
      else if (key == "multiplicity" && whole(value) && std::stoi(value) > 0) multiplicity_ = std::stoi(value);
      else if (key == "allow_unseen_state" && (value == "yes" || value == "no")) allow_unseen_state_ = value == "yes";
      else
        fail("pair_style mfmd: '" + key + " " + value + "' is none of: head NAME, precision single, precision double, precision tf32, threads N, device cuda, device cuda:N, charge N, multiplicity N (2S + 1), allow_unseen_state yes");
    }
    if (device.empty() && options_.precision == Precision::tf32) fail("pair_style mfmd: precision tf32 is for the tensor cores of a CUDA device; add device cuda, or use single");
    if (!device.empty() && threads_said) fail("pair_style mfmd: threads are the CPU's, and device " + device + " has its own; leave out one of the two");
    if (!device.empty()) take_device(device);
  }

  // pair_coeff * * model.pt H C N O: an element for every atom type, in pair_style hybrid NULL for types that the model is not for
  void coeff(int narg, char** arg) override {
    const int types = atom->ntypes;
    if (narg != 3 + types || std::strcmp(arg[0], "*") || std::strcmp(arg[1], "*"))
      fail("pair_coeff of mfmd is '* *', a model file and an element for each of the " + std::to_string(types) + " atom types");
    std::shared_ptr<const Model> model;
    std::string problem;
    try {
      model = Model::load(arg[2]);
      term_ = head_.empty() ? static_cast<int>(model->levels().size()) - 1 : model->level(head_);
      workspace_ = std::make_unique<Workspace>(model, options_);
    } catch (const Error& e) {
      problem = e.what();
    }
    fail_if_any(problem, std::string(arg[2]) + ": another process cannot use it");
    const Level& level = model->levels()[static_cast<std::size_t>(term_)];
    std::string known;
    for (const int z : level.elements) known += " " + symbol(z);
    elements_ = level.elements;
    number_.assign(static_cast<std::size_t>(types) + 1, 0);
    for (int t = 1; t <= types; ++t) {
      if (std::strcmp(arg[2 + t], "NULL") == 0) continue;
      const auto found = std::find_if(level.elements.begin(), level.elements.end(), [&](int z) { return symbol(z) == arg[2 + t]; });
      if (found == level.elements.end())
        fail("pair_coeff: atom type " + std::to_string(t) + " is '" + arg[2 + t] + "', and head " + level.name + " of " + arg[2] + " was trained on" + known);
      number_[static_cast<std::size_t>(t)] = *found;
    }
    const auto all = std::count_if(number_.begin(), number_.end(), [](int z) { return z > 0; });
    if (all == 0) fail("pair_coeff of mfmd: every atom type is NULL, and the model has no atoms");
    if (all < types && std::strncmp(force->pair_style, "hybrid", 6))
      fail("pair_coeff of mfmd: with an atom type that is NULL another style must see to it; use pair_style hybrid mfmd ... and that style");
    cutoff_ = model->cutoff();
    says_ = model->domain();
    told_ = 0;
    model_ = std::move(model);
    width_ = workspace_->ghost_width();
    comm_forward = static_cast<int>(words());
    if (!allocated) {
      memory->create(setflag, types + 1, types + 1, "pair:setflag");
      memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
      allocated = 1;
    }
    for (int i = 1; i <= types; ++i)
      for (int j = 1; j <= types; ++j) setflag[i][j] = modelled(i) && modelled(j);
  }

  void init_style() override {
    const std::string units = update->unit_style;
    if (units != "metal" && units != "real") fail("pair_style mfmd works in units metal and real, and here they are " + units);
    energy_unit_ = units == "real" ? kKcalPerMol : 1.0;
    check_masses();
    check_labels();
    check_neighbors();
    check_charges();
    take_state();
    if (comm->me == 0 && (state_ != State() || model_->states().size() > 1))
      LAMMPS_NS::utils::logmesg(lmp, "pair_style mfmd: its atoms have {}\n", told(state_));
    if (force->pair != this) force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);  // hybrid/overlay: buffers are of its size
    neighbor->add_request(this, LAMMPS_NS::NeighConst::REQ_FULL);
  }

  double init_one(int, int) override { return cutoff_; }

  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    if (neighbor->ago == 0 || place_.size() != static_cast<std::size_t>(atom->nlocal + atom->nghost)) take_list();
    const std::size_t all = atoms_.size();
    positions_.resize(3 * all);
    numbers_.resize(all);
    for (std::size_t k = 0; k < all; ++k) {
      std::copy_n(atom->x[atoms_[k]], 3, positions_.begin() + static_cast<std::ptrdiff_t>(3 * k));
      numbers_[k] = number_[static_cast<std::size_t>(atom->type[atoms_[k]])];
    }

    const HostPairs pairs{first_.data(), neighbors_.data(), version_};
    Structure s;
    s.atoms = own_;
    s.ghosts = static_cast<int>(all) - own_;
    s.positions = positions_.data();
    s.numbers = numbers_.data();
    s.ids = ids_.data();
    s.pairs = &pairs;
    s.states = {state_};
    s.fill_ghosts = [&](void* rows, std::size_t width) {
      rows_ = static_cast<char*>(rows);
      width_ = width;
      comm->forward_comm(this);
    };
    Request request;
    request.terms = {{term_, 1.0}};
    request.virial = vflag_global != 0;
    request.atom_energies = eflag_atom != 0;
    request.atom_virials = vflag_atom != 0;
    request.domain = says_;
    request.allow_unseen_state = true;  // take_state has looked
    try {
      const Result& result = workspace_->evaluate(s, request);
      if (request.domain) tell(result.outside);
      if (eflag_global) eng_vdwl += energy_unit_ * (result.energy + (comm->me == 0 ? model_->constant(term_) + model_->of_state(term_, state_) : 0.0));
      if (vflag_global) add(result.virial, virial);
      for (std::size_t k = 0; k < static_cast<std::size_t>(own_); ++k) {
        const int i = atoms_[k];
        for (std::size_t a = 0; a < 3; ++a) atom->f[i][a] += energy_unit_ * result.forces[3 * k + a];
        if (eflag_atom) eatom[i] += energy_unit_ * result.atom_energies[k];
        if (vflag_atom) add(result.atom_virials.data() + 9 * k, vatom[i]);
      }
    } catch (const Error& problem) {
      error->one(FLERR, "mfmd: {} (atoms by their places among the model's on process {})", problem.what(), comm->me);
    }
  }

  // Rows of the model's atoms alone: which of the atoms that travel are such, both sides know from their types.
  int pack_forward_comm(int n, int* atoms, double* buffer, int, int*) override {
    const double* begin = buffer;
    for (int k = 0; k < n; ++k) {
      if (const char* from = row(atoms[k])) {
        std::memcpy(buffer, from, width_);
        buffer += words();
      }
    }
    return static_cast<int>(buffer - begin);
  }

  void unpack_forward_comm(int n, int first, double* buffer) override {
    for (int i = first; i < first + n; ++i) {
      if (char* to = row(i)) {
        std::memcpy(to, buffer, width_);
        buffer += words();
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& sentence) { error->all(FLERR, "{}", sentence); }  // what every process finds alike

  void fail_if_any(const std::string& problem, const std::string& of_another) {  // on any process
    if (any(!problem.empty())) fail(problem.empty() ? of_another : problem);
  }

  // "cuda": the processes of a node take its devices in turn.
  void take_device(const std::string& said) {
    const int devices = cuda_devices();
    std::string problem;
    if (!has_cuda()) problem = "this build of mfmd has no CUDA; build it where nvcc is, or leave out device";
    else if (devices == 0) problem = "this machine has no CUDA device that can be used; leave out device";
    if (said == "cuda") {
      MPI_Comm node;
      MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &node);
      MPI_Comm_rank(node, &options_.cuda);
      MPI_Comm_free(&node);
      options_.cuda %= std::max(devices, 1);
    } else {
      options_.cuda = std::stoi(said.substr(5));
      if (problem.empty() && options_.cuda >= devices) problem = fmt::format("there is no CUDA device number {}; this machine has {}", options_.cuda, devices);
    }
    fail_if_any(problem.empty() ? problem : "pair_style mfmd: " + problem, "pair_style mfmd: another process has no such CUDA device");
  }

  static bool count(const std::string& value) { return !value.empty() && value.size() < 4 && value.find_first_not_of("0123456789") == std::string::npos; }
  static bool whole(const std::string& value) {
    const std::size_t sign = value[0] == '-' || value[0] == '+', digits = value.size() - sign;
    return digits > 0 && digits < 5 && value.find_first_not_of("0123456789", sign) == std::string::npos;
  }
  bool modelled(int type) const { return number_[static_cast<std::size_t>(type)] > 0; }
  bool any(bool here) const {  // on any process
    int mine = here, all = 0;
    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MAX, world);
    return all > 0;
  }

  // Where the system is far outside what the model was trained on, the farthest atom of all processes; again when it is twice as far.
  void tell(const Outside& mine) {
    double farthest = 0.0;
    MPI_Allreduce(&mine.by, &farthest, 1, MPI_DOUBLE, MPI_MAX, world);
    if (grade(farthest) <= told_) return;
    told_ = grade(farthest);
    std::int64_t atom_id = mine.by == farthest ? mine.atom : INT64_MAX, first = 0;
    MPI_Allreduce(&atom_id, &first, 1, MPI_INT64_T, MPI_MIN, world);
    int rank = atom_id == first && mine.by == farthest ? comm->me : comm->nprocs, owner = 0;
    MPI_Allreduce(&rank, &owner, 1, MPI_INT, MPI_MIN, world);
    int size = static_cast<int>(mine.sentence.size());
    MPI_Bcast(&size, 1, MPI_INT, owner, world);
    std::string sentence = comm->me == owner ? mine.sentence : std::string(static_cast<std::size_t>(size), ' ');
    MPI_Bcast(&sentence[0], size, MPI_CHAR, owner, world);
    if (comm->me == 0) error->warning(FLERR, "mfmd: step {}: {}", update->ntimestep, sentence);
  }

  // The mass of each type, of atoms with masses of their own the mean; 0 where none is known.
  std::vector<double> masses() const {
    std::vector<double> sums(2 * number_.size(), 0.0), mean(number_.size(), 0.0);
    for (int i = 0; i < atom->nlocal && atom->rmass_flag; ++i) {
      sums[static_cast<std::size_t>(2 * atom->type[i])] += atom->rmass[i];
      sums[static_cast<std::size_t>(2 * atom->type[i] + 1)] += 1.0;
    }
    MPI_Allreduce(MPI_IN_PLACE, sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, world);
    for (std::size_t t = 1; t < mean.size(); ++t) {
      if (atom->rmass_flag) mean[t] = sums[2 * t + 1] > 0.0 ? sums[2 * t] / sums[2 * t + 1] : 0.0;
      else if (atom->mass_setflag[t]) mean[t] = atom->mass[t];
    }
    return mean;
  }

  // Elements in another order than the types: a mass that is another element's. Isotopes are none, and masses between; where hydrogens are heavier, what
  // heavy atoms have given them may make an oxygen as heavy as nitrogen.
  void check_masses() {
    const std::vector<double> mass = masses();
    bool repartitioned = false;
    for (std::size_t t = 1; t < mass.size(); ++t) repartitioned |= number_[t] == 1 && mass[t] > 1.2 && mass[t] < kHeaviestHydrogen;
    std::string unusual;
    for (std::size_t t = 1; t < mass.size(); ++t) {
      const int z = number_[t];
      if (z == 0 || mass[t] == 0.0) continue;
      const double off = std::fabs(mass[t] - kMasses[z]);
      const bool given = repartitioned && z > 4 && mass[t] < kMasses[z], taken = z == 1 && mass[t] < kHeaviestHydrogen;
      for (const int other : elements_)
        if (!given && !taken && 10.0 * std::fabs(mass[t] - kMasses[other]) < off)
          fail(fmt::format("pair_coeff of mfmd: atom type {} is {}, whose mass is {:.6g}, and the type has the mass {:.6g} of {}; name the elements in the "
                           "order of the types, or mend the mass", t, symbol(z), kMasses[z], mass[t], symbol(other)));
      if (off > 0.3 && off > 0.01 * kMasses[z]) unusual += fmt::format("{} type {}, {} of mass {:.6g}", unusual.empty() ? "" : ",", t, symbol(z), mass[t]);
    }
    if (!unusual.empty() && comm->me == 0) error->warning(FLERR, "pair_style mfmd: taken as isotopes or repartitioned masses:{}", unusual);
  }

  // A type's label that is the symbol of another element that the model knows.
  void check_labels() {
    if (!atom->labelmapflag || lmp->num_ver < 20250722) return;  // older ones cannot be asked
    const auto asked = [&](const char* function, const std::string& label) { return input->variable->compute_equal(fmt::format("{}(atom,{})", function, label)); };
    for (const int z : elements_) {
      if (asked("is_typelabel", symbol(z)) == 0.0) continue;
      const int t = static_cast<int>(asked("label2type", symbol(z)));
      if (modelled(t) && number_[static_cast<std::size_t>(t)] != z)
        fail(fmt::format("pair_coeff of mfmd: atom type {} is {}, and its label is {}; name the elements in the order of the types", t,
                         symbol(number_[static_cast<std::size_t>(t)]), symbol(z)));
    }
  }

  // Nothing may take pairs of the model's atoms out of the neighbour list.
  void check_neighbors() {
    const auto has = [&](int bit) {
      bool here = false;
      for (int i = 0; i < atom->nlocal && !here; ++i) here = atom->mask[i] & bit && modelled(atom->type[i]);
      return any(here);
    };
    bool excluded = false;
    for (int k = 0; k < neighbor->nex_type; ++k) excluded |= modelled(neighbor->ex1_type[k]) && modelled(neighbor->ex2_type[k]);
    for (int k = 0; k < neighbor->nex_group; ++k) excluded |= has(group->bitmask[neighbor->ex1_group[k]]) && has(group->bitmask[neighbor->ex2_group[k]]);
    for (int k = 0; k < neighbor->nex_mol; ++k) excluded |= has(group->bitmask[neighbor->ex_mol_group[k]]);
    if (excluded) fail("pair_style mfmd needs every pair of its atoms, and neigh_modify exclude takes some out of the neighbour list");
    if (neighbor->includegroup) fail("pair_style mfmd needs every pair of its atoms, and neigh_modify include has those of one group alone");
  }

  void check_charges() {
    if (!atom->q_flag) return;
    double mine = 0.0, charge = 0.0;
    bool charged = false;
    for (int i = 0; i < atom->nlocal; ++i) {
      if (!modelled(atom->type[i])) continue;
      mine += atom->q[i];
      charged |= atom->q[i] != 0.0;
    }
    MPI_Allreduce(&mine, &charge, 1, MPI_DOUBLE, MPI_SUM, world);
    charged = any(charged);
    if (charged && std::fabs(charge - charge_) > 0.01)
      fail(charge_said_ ? fmt::format("pair_style mfmd: the charges q of its atoms add up to {:.3g}, and it is told charge {}; mend one of them", charge, charge_)
                        : fmt::format("pair_style mfmd: the charges q of its atoms add up to {:.3g}; tell it with charge N, or mend them", charge));
    if (charged && force->kspace && comm->me == 0)
      error->warning(FLERR, "pair_style mfmd: its atoms have charges, and kspace_style {} adds their Coulomb energy among themselves to the model's, which has it already; "
                     "set their charges to 0, or use a Coulomb style with a cutoff that is not theirs", force->kspace_style);
  }

  // The state of the model's atoms on all processes. A part of the system is a molecule, whatever box it is in.
  void take_state() {
    counted_ = atom->natoms;
    int mine[2] = {0, 0}, all[2] = {0, 0};  // atoms and protons
    for (int i = 0; i < atom->nlocal; ++i) {
      mine[0] += modelled(atom->type[i]);
      mine[1] += number_[static_cast<std::size_t>(atom->type[i])];
    }
    MPI_Allreduce(mine, all, 2, MPI_INT, MPI_SUM, world);
    const bool part = std::count(number_.begin() + 1, number_.end(), 0) > 0, periodic = !part && (domain->xperiodic || domain->yperiodic || domain->zperiodic);
    const int numbers[2] = {all[1], 0};  // their sum and whether there is one atom is all that is read
    try {
      Structure s;
      s.atoms = all[0];
      s.states = {state_ = state_of(numbers, std::min(all[0], 2), charge_, multiplicity_, periodic)};
      check_states(*model_, heads_of(*model_, {{term_, 1.0}}), s, allow_unseen_state_);
    } catch (const Error& problem) {
      fail(std::string("pair_style mfmd: ") + problem.what());
    }
  }

  // Bonded pairs whose factors of special_bonds are zero are left out of the list as a rule.
  bool lacks_bonded() const {
    if (atom->molecular == LAMMPS_NS::Atom::TEMPLATE) return !neighbor->special_flag[1] || !neighbor->special_flag[2] || !neighbor->special_flag[3];
    for (std::size_t k = 0; k < static_cast<std::size_t>(own_); ++k) {
      const int i = atoms_[k], *ends = atom->nspecial[i];
      for (int b = 0; b < ends[2]; ++b) {
        const int j = atom->map(atom->special[i][b]);
        if (!neighbor->special_flag[b < ends[0] ? 1 : b < ends[1] ? 2 : 3] && j >= 0 && modelled(atom->type[j])) return true;
      }
    }
    return false;
  }

  // In pair_style hybrid a later pair_coeff takes pairs over: the list skips them, or after `none` has no cutoff for them.
  void check_types() {
    for (int i = 1; i <= atom->ntypes; ++i)
      for (int j = i; j <= atom->ntypes; ++j)
        if (modelled(i) && modelled(j) && ((list->ijskip && list->ijskip[i][j]) || force->pair->cutsq[i][j] < cutoff_ * cutoff_))
          fail(fmt::format("pair_style mfmd needs every pair of its atoms, and a later pair_coeff of {} takes those of types {} and {} from it; "
                           "put it before that of mfmd, or use hybrid/overlay", force->pair_style, i, j));
  }

  // The model's atoms and ghosts, numbered as the engine wants them, and their neighbours.
  void take_list() {
    ++version_;
    if (atom->natoms != counted_) take_state();
    const int local = atom->nlocal, all = local + atom->nghost;
    place_.assign(static_cast<std::size_t>(all), -1);
    atoms_.clear();
    ids_.clear();
    own_ = 0;
    for (int i = 0; i < all; ++i) {
      if (!modelled(atom->type[i])) continue;
      place_[static_cast<std::size_t>(i)] = static_cast<int>(atoms_.size());
      atoms_.push_back(i);
      ids_.push_back(atom->tag_enable ? atom->tag[i] : i);
      own_ += i < local;
    }
    check_types();
    if (atom->molecular != LAMMPS_NS::Atom::ATOMIC && any(lacks_bonded()))
      fail("pair_style mfmd needs every pair of its atoms, and special_bonds takes bonded ones out of the neighbour list; set special_bonds lj/coul 1 1 1, or "
           "leave out the bonds of the model's atoms");
    if (list->inum != own_) error->one(FLERR, "pair_style mfmd has {} atoms on process {}, and their neighbour list has {}", own_, comm->me, list->inum);
    first_.assign(1, 0);
    neighbors_.clear();
    for (std::size_t k = 0; k < static_cast<std::size_t>(own_); ++k) {
      const int* own = list->firstneigh[atoms_[k]];
      std::transform(own, own + list->numneigh[atoms_[k]], std::back_inserter(neighbors_), [&](int j) { return place_[static_cast<std::size_t>(j & NEIGHMASK)]; });
      first_.push_back(static_cast<int>(neighbors_.size()));
    }
  }

  std::size_t words() const { return (width_ + sizeof(double) - 1) / sizeof(double); }  // doubles of a message that a row takes
  char* row(int i) {  // of an atom of the model, else null
    const int at = place_[static_cast<std::size_t>(i)];
    return at < 0 ? nullptr : rows_ + static_cast<std::size_t>(at) * width_;
  }

  void add(const double* full, double* six) const {  // xx yy zz xy xz yz
    const int at[6] = {0, 4, 8, 1, 2, 5};
    for (int k = 0; k < 6; ++k) six[k] += energy_unit_ * full[at[k]];
  }

  std::string head_;
  Options options_;
  int term_ = 0;
  double cutoff_ = 0.0, energy_unit_ = 1.0;
  std::vector<int> elements_;  // of the head
  std::vector<int> number_;    // by atom type; 0: not the model's
  std::unique_ptr<Workspace> workspace_;
  std::shared_ptr<const Model> model_;
  int charge_ = 0, multiplicity_ = 0;  // as they are told; 0: the lowest multiplicity
  bool charge_said_ = false, allow_unseen_state_ = false;
  State state_;                        // of all the model's atoms
  LAMMPS_NS::bigint counted_ = -1;     // how many atoms there were when it was found
  char* rows_ = nullptr;   // what is being sent
  std::size_t width_ = 0;  // bytes of a row of it
  std::int64_t version_ = 0;
  // The model's atoms, then its ghosts: indices of LAMMPS [own + ghosts]; the way back, -1 for other atoms; the first are this process's.
  std::vector<int> atoms_, place_;
  int own_ = 0;
  std::vector<double> positions_;
  std::vector<std::int64_t> ids_;  // of LAMMPS
  bool says_ = false;              // the model file says what it was trained on
  int told_ = 0;                   // the grade by which the system was far outside of it
  std::vector<int> first_, neighbors_, numbers_;
};

LAMMPS_NS::Pair* create(LAMMPS* host) { return new Pair(host); }

// As lammpsplugin.h has it, which the packaged LAMMPS lacks.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  LAMMPS_NS::Pair* (*create)(LAMMPS*);
  void* handle;
};

}  // namespace mfmd::lammps

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* host, void* handle, void* enlist) {
  mfmd::lammps::Plugin plugin{MFMD_LAMMPS_VERSION, "pair", "mfmd", "mfmd: models of several levels of theory", "the mfmd authors", &mfmd::lammps::create, handle};
  reinterpret_cast<void (*)(mfmd::lammps::Plugin*, void*)>(enlist)(&plugin, host);
}
