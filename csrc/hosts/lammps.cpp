// The LAMMPS host: `pair_style mfmd` as a plugin. LAMMPS owns the boxes, the ghosts and the neighbour list; rows of features and of their
// adjoints travel to ghost atoms between the layers, so that one cutoff of ghosts is enough for any number of layers.
// This file is MIT like the rest. A plugin compiled from it links to LAMMPS, which is GPL version 2, and is passed on under its terms.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../mfmd.hpp"
#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#ifndef MFMD_LAMMPS_VERSION  // compiled against a source tree
#include "version.h"
#define MFMD_LAMMPS_VERSION LAMMPS_VERSION
#endif

namespace mfmd::lammps {

using LAMMPS_NS::LAMMPS;

constexpr double kKcalPerMol = 96485.33212331001 / 4184.0;  // in an eV

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

  // pair_style mfmd [head NAME] [precision single|double] [threads N]
  void settings(int narg, char** arg) override {
    head_.clear();
    options_ = Options();
    for (int i = 1; allocated && i <= atom->ntypes; ++i)  // coefficients are to be given anew
      for (int j = 1; j <= atom->ntypes; ++j) setflag[i][j] = 0;
    for (int k = 0; k < narg; k += 2) {
      const std::string key = arg[k], value = k + 1 < narg ? arg[k + 1] : "";
      if (value.empty()) fail("pair_style mfmd: " + key + " has no value");
      if (key == "head") head_ = value;
      else if (key == "precision" && (value == "single" || value == "double"))
        options_.precision = value == "single" ? Precision::single_ : Precision::double_;
      else if (key == "threads" && value.find_first_not_of("0123456789") == std::string::npos && value.size() < 4 && std::stoi(value) > 0)
        options_.threads = std::stoi(value);
      else fail("pair_style mfmd: '" + key + " " + value + "' is none of: head NAME, precision single, precision double, threads N");
    }
  }

  // pair_coeff * * model.pt H C N O: an element for every atom type
  void coeff(int narg, char** arg) override {
    const int types = atom->ntypes;
    if (narg != 3 + types || std::strcmp(arg[0], "*") || std::strcmp(arg[1], "*"))
      fail("pair_coeff of mfmd is '* *', a model file and an element for each of the " + std::to_string(types) + " atom types");
    std::shared_ptr<const Model> model;
    std::string problem;
    try {
      model = Model::load(arg[2]);
      term_ = head_.empty() ? static_cast<int>(model->levels().size()) - 1 : model->level(head_);
    } catch (const Error& e) {
      problem = e.what();
    }
    int mine = !problem.empty(), any = 0;
    MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
    if (any) fail(mine ? problem : std::string(arg[2]) + ": another process cannot read it");
    const Level& level = model->levels()[static_cast<std::size_t>(term_)];
    std::string known;
    for (const int z : level.elements) known += " " + symbol(z);
    number_.assign(static_cast<std::size_t>(types) + 1, 0);
    for (int t = 1; t <= types; ++t) {
      const auto found = std::find_if(level.elements.begin(), level.elements.end(), [&](int z) { return symbol(z) == arg[2 + t]; });
      if (found == level.elements.end())
        fail("pair_coeff: atom type " + std::to_string(t) + " is '" + arg[2 + t] + "', and head " + level.name + " of " + arg[2] + " was trained on" + known);
      number_[static_cast<std::size_t>(t)] = *found;
    }
    cutoff_ = model->cutoff();
    workspace_ = std::make_unique<Workspace>(std::move(model), options_);
    words_ = (workspace_->ghost_width() + sizeof(double) - 1) / sizeof(double);
    comm_forward = static_cast<int>(words_);
    if (!allocated) {
      memory->create(setflag, types + 1, types + 1, "pair:setflag");
      memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
      allocated = 1;
    }
    for (int i = 1; i <= types; ++i)
      for (int j = 1; j <= types; ++j) setflag[i][j] = 1;
  }

  void init_style() override {
    const std::string units = update->unit_style;
    if (units != "metal" && units != "real") fail("pair_style mfmd works in units metal and real, and here they are " + units);
    energy_unit_ = units == "real" ? kKcalPerMol : 1.0;
    for (int k = 1; k < 4 && atom->molecular != LAMMPS_NS::Atom::ATOMIC; ++k)
      if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
        fail("pair_style mfmd needs every pair, and special_bonds takes bonded ones out of the neighbour list; set special_bonds lj/coul 1 1 1");
    if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol) fail("pair_style mfmd needs every pair, and neigh_modify exclude takes some out of the neighbour list");
    if (std::strcmp(force->pair_style, "hybrid") == 0) fail("pair_style mfmd needs every pair; use hybrid/overlay instead of hybrid");
    if (atom->q_flag) {
      double mine = 0.0, charge = 0.0;
      for (int k = 0; k < atom->nlocal; ++k) mine += atom->q[k];
      MPI_Allreduce(&mine, &charge, 1, MPI_DOUBLE, MPI_SUM, world);
      if (std::fabs(charge) > 0.01) fail(fmt::format("pair_style mfmd: the charges q of the atoms add up to {:.3g}, and charged systems are not modelled yet", charge));
    }
    if (force->pair != this) force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);  // hybrid/overlay: buffers are of its size
    neighbor->add_request(this, LAMMPS_NS::NeighConst::REQ_FULL);
  }

  double init_one(int, int) override { return cutoff_; }

  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    const int n = atom->nlocal, all = n + atom->nghost;
    if (list->inum != n) error->one(FLERR, "pair_style mfmd needs a neighbour list of all atoms, and in this pair_style hybrid/overlay some are left out");
    if (neighbor->ago == 0 || first_.size() != static_cast<std::size_t>(n) + 1) take_list();
    numbers_.resize(static_cast<std::size_t>(all));
    for (int i = 0; i < all; ++i) numbers_[static_cast<std::size_t>(i)] = number_[static_cast<std::size_t>(atom->type[i])];

    const HostPairs pairs{first_.data(), neighbors_.data(), version_};
    Structure s;
    s.atoms = n;
    s.ghosts = all - n;
    s.positions = atom->x[0];
    s.numbers = numbers_.data();
    s.pairs = &pairs;
    s.fill_ghosts = [&](void* rows, std::size_t) {
      rows_ = static_cast<char*>(rows);
      comm->forward_comm(this);
    };
    Request request;
    request.terms = {{term_, 1.0}};
    request.virial = vflag_global != 0;
    request.atom_energies = eflag_atom != 0;
    request.atom_virials = vflag_atom != 0;
    try {
      const Result& result = workspace_->evaluate(s, request);
      for (int i = 0; i < n; ++i)
        for (int a = 0; a < 3; ++a) atom->f[i][a] += energy_unit_ * result.forces[static_cast<std::size_t>(3 * i + a)];
      if (eflag_global) eng_vdwl += energy_unit_ * result.energy;
      if (vflag_global) add(result.virial, virial);
      for (int i = 0; i < n && eflag_atom; ++i) eatom[i] += energy_unit_ * result.atom_energies[static_cast<std::size_t>(i)];
      for (int i = 0; i < n && vflag_atom; ++i) add(result.atom_virials.data() + 9 * static_cast<std::size_t>(i), vatom[i]);
    } catch (const Error& problem) {
      error->one(FLERR, "mfmd: {} (atoms by their places on process {})", problem.what(), comm->me);
    }
  }

  int pack_forward_comm(int n, int* atoms, double* buffer, int, int*) override {
    for (int k = 0; k < n; ++k) std::memcpy(buffer + static_cast<std::size_t>(k) * words_, row(atoms[k]), workspace_->ghost_width());
    return n * static_cast<int>(words_);
  }

  void unpack_forward_comm(int n, int first, double* buffer) override {
    for (int k = 0; k < n; ++k) std::memcpy(row(first + k), buffer + static_cast<std::size_t>(k) * words_, workspace_->ghost_width());
  }

 private:
  [[noreturn]] void fail(const std::string& sentence) { error->all(FLERR, "{}", sentence); }  // what every process finds alike

  void take_list() {
    ++version_;
    first_.assign(1, 0);
    neighbors_.clear();
    for (int i = 0; i < atom->nlocal; ++i) {
      const int* own = list->firstneigh[i];
      std::transform(own, own + list->numneigh[i], std::back_inserter(neighbors_), [](int j) { return j & NEIGHMASK; });
      first_.push_back(static_cast<int>(neighbors_.size()));
    }
  }

  char* row(int atom_index) { return rows_ + static_cast<std::size_t>(atom_index) * workspace_->ghost_width(); }

  void add(const double* full, double* six) const {  // xx yy zz xy xz yz
    const int at[6] = {0, 4, 8, 1, 2, 5};
    for (int k = 0; k < 6; ++k) six[k] += energy_unit_ * full[at[k]];
  }

  std::string head_;
  Options options_;
  int term_ = 0;
  double cutoff_ = 0.0, energy_unit_ = 1.0;
  std::vector<int> number_;  // by atom type
  std::unique_ptr<Workspace> workspace_;
  std::size_t words_ = 0;  // doubles of a message that a row takes
  char* rows_ = nullptr;   // what is being sent
  std::int64_t version_ = 0;
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
