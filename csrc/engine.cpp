// One evaluation from positions to energies, forces and virial.
#include "mfmd.hpp"

#if defined(MFMD_ARM)
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <mutex>

#include "domain.hpp"
#include "heads.hpp"
#include "kernels/neighbors.hpp"
#include "kernels/repulsion.hpp"
#include "kernels/stages.hpp"
#include "kernels/tensor.hpp"
#include "kernels/training.hpp"
#include "packing.hpp"
#include "states.hpp"
#include "tables.hpp"
#include "threads.hpp"
#include "workspace.hpp"

namespace mfmd {

#if defined(MFMD_ARM)
namespace neon { template <class T> const Stages<T>& table(); }
namespace sve256 { template <class T> const Stages<T>& table(); }
namespace sve512 { template <class T> const Stages<T>& table(); }
#else
namespace generic { template <class T> const Stages<T>& table(); }
#endif
#if defined(MFMD_X86)
namespace avx2 { template <class T> const Stages<T>& table(); }
namespace avx512 { template <class T> const Stages<T>& table(); }
#endif

namespace {

// Of the instruction sets that this machine has, the best first.
template <class T> std::vector<const Stages<T>*> tables() {
  std::vector<const Stages<T>*> out;
#if defined(MFMD_X86)
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  if (has512) out.push_back(&avx512::table<T>());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.push_back(&avx2::table<T>());
#endif
#if defined(MFMD_ARM)
  // Code for one length of SVE's vectors is right on that length alone; with 16 bytes they are no wider than NEON's.
  const int bytes = getauxval(AT_HWCAP) & HWCAP_SVE ? prctl(PR_SVE_GET_VL) & PR_SVE_VL_LEN_MASK : 0;
  if (bytes == 64) out.push_back(&sve512::table<T>());
  if (bytes == 32) out.push_back(&sve256::table<T>());
  out.push_back(&neon::table<T>());
#else
  out.push_back(&generic::table<T>());
#endif
  return out;
}

}  // namespace

template <class T> const Stages<T>& stages() {
  const char* said = std::getenv("MFMD_SIMD");
  const std::string wanted = said ? said : "";
  for (const Stages<T>* table : tables<T>())
    if (wanted.empty() || wanted == table->name) return *table;
  std::string names;
  for (const std::string& name : instruction_sets()) names += (names.empty() ? "" : ", ") + name;
  throw InputError("MFMD_SIMD is " + wanted + ", which this machine does not have; unset it, or name one of " + names);
}
template const Stages<float>& stages<float>();
template const Stages<double>& stages<double>();

std::string instruction_set() { return stages<float>().name; }
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Stages<float>* table : tables<float>()) names.push_back(table->name);
  return names;
}

namespace {

constexpr int kGrain = 12;       // atoms that are worth a thread
constexpr int kGatherGrain = 128;  // atoms that go through a slab of the tables together, at most

const char* const kSymbols[] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",  "S",  "Cl", "Ar", "K",
    "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",
    "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re", "Os", "Ir", "Pt", "Au",
    "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es",
    "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

}  // namespace

std::string symbol(int z) { return z >= 1 && z <= 118 ? kSymbols[z] : "element " + std::to_string(z); }

namespace {

// What an evaluation computes on its way. It holds nothing that the next one needs, so that engines hand it on: many cost what those do that are at
// work at one time.
template <class T> struct Arrays {
  std::vector<Buffer<T>> scratch, x, y, m, dx, sums;  // [threads], [layers + 1], [layers] …
  std::vector<int> slot, interval;
  std::vector<Excess> excess;
  std::vector<double> head_energies, slope, turn, forces;
  Buffer<T> distance, basis, place, raw, mixed, kept, ax, am, ay, asums, features;
};

template <class T> class Store {
 public:
  // Of all engines of this precision; its arrays go with the last of them.
  static std::shared_ptr<Store> of_process() {
    static std::mutex guard;
    static std::weak_ptr<Store> known;
    const std::lock_guard<std::mutex> lock(guard);
    std::shared_ptr<Store> store = known.lock();
    if (!store) known = store = std::make_shared<Store>();
    return store;
  }
  std::unique_ptr<Arrays<T>> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Arrays<T>>();
    std::unique_ptr<Arrays<T>> arrays = std::move(free_.back());
    free_.pop_back();
    return arrays;
  }
  void give(std::unique_ptr<Arrays<T>> arrays) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(arrays));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arrays<T>>> free_;
};

template <class T> class Evaluation final : public Workspace::Data {
 public:
  Evaluation(std::shared_ptr<const Model> model, const Options& options)
      : model_(std::move(model)), states_(model_->states()), w_(&model_->weights<T>(states_)), pool_(options.threads), list_(w_->cutoff, options.skin), tables_(options.tables) {}
  std::int64_t rebuilds() const override { return list_.rebuilds(); }
  std::size_t ghost_width() const override { return static_cast<std::size_t>(w_->C * w_->F) * sizeof(T); }
  const std::map<std::string, double>& stage_times() const override {
    times_.clear();
    for (const auto& [name, seconds] : laps_) times_[name] += seconds;
    return times_;
  }

  const std::vector<Result>& evaluate(const Structure* structures, int count, const Request& request) override {
    heads_ = heads_of(*model_, request.terms);
    seeds_.clear();
    for (const Heads::Used& used : heads_.used) seeds_.push_back({used.head, static_cast<T>(used.weight), nullptr});
    results_.resize(static_cast<std::size_t>(count));
    struct Loan {  // back when all is done, or thrown
      Evaluation& of;
      ~Loan() { of.store_->give(std::move(of.a_)); }
    };
    a_ = store_->take();
    const Loan loan{*this};
    while (a_->scratch.size() < static_cast<std::size_t>(pool_.threads())) a_->scratch.emplace_back();
    for (int k = 0; k < pool_.threads(); ++k) a_->scratch[static_cast<std::size_t>(k)].resize(scratch_size(*w_));
    for (int k = 0; k < count; ++k) evaluate(structures[k], request, results_[static_cast<std::size_t>(k)]);
    return results_;
  }
  bool enqueue(const DeviceStructures&, const Request&, const DeviceResults&) override { throw InputError("structures on a CUDA device need a workspace of that device"); }

 private:
  void evaluate(const Structure& s, const Request& request, Result& result) {
    if (s.atoms < 0 || s.ghosts < 0) throw InputError("a structure cannot have fewer than no atoms");
    if (s.ghosts > 0 && (!s.pairs || !s.fill_ghosts)) throw InputError("ghost atoms need the host's pairs and fill_ghosts");
    check_fragments(s.states.size(), s.fragment, s.atoms + s.ghosts);
    check_elements(*model_, heads_, s);
    check_states(*model_, heads_, s, request.allow_unseen_state);
    timed("neighbors", [&] {
      list_.update(s, kFirstKnot, pool_);
      find_slots(s);
      round_pairs();
    });
    const bool domain = request.domain && model_->domain();
    run(s, request.forces || request.virial || request.atom_virials, request.error_bars || domain);
    if (domain) timed("domain", [&] { find_excess(s); });
    timed("collect", [&] { collect(s, request, result); });
  }

  template <class Body> void timed(const char* name, const Body& body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto lap = std::find_if(laps_.begin(), laps_.end(), [&](const auto& known) { return known.first == name; });
    if (lap == laps_.end()) laps_.emplace_back(name, seconds);
    else lap->second += seconds;
  }

  void find_slots(const Structure& s) {
    const auto& elements = model_->elements();
    std::vector<int> slot_of(119, -1), first;  // of an element; of a fragment, where the rows of its state begin
    for (std::size_t k = 0; k < elements.size(); ++k) slot_of[static_cast<std::size_t>(elements[k])] = static_cast<int>(k);
    for (const State& state : s.states) first.push_back(place_of(states_, state) * static_cast<int>(elements.size()));
    if (first.empty()) first.push_back(0);
    if (states_.size() * elements.size() > static_cast<std::size_t>(w_->slots)) w_ = &model_->weights<T>(states_);
    a_->slot.resize(list_.order().size());
    for (std::size_t row = 0; row < a_->slot.size(); ++row) {
      const int atom = list_.order()[row];
      a_->slot[row] = first[s.fragment ? static_cast<std::size_t>(s.fragment[atom]) : 0] + slot_of[static_cast<std::size_t>(s.numbers[atom])];
    }
  }

  void round_pairs() {
    const std::size_t pairs = list_.neighbors().size();
    T* d = a_->distance.resize(tables_ ? 0 : pairs);
    T* basis = a_->basis.resize(kMaxComponents * pairs);
    a_->interval.resize(tables_ ? pairs : 0);
    T* place = a_->place.resize(tables_ ? 2 * pairs : 0);
    const Intervals intervals(w_->intervals, w_->cutoff);
    pool_.loop(static_cast<int>(pairs), 1024, [&](int begin, int end, int) {
      for (std::size_t p = static_cast<std::size_t>(begin); p < static_cast<std::size_t>(end); ++p) {
        const double inverse = 1.0 / list_.distances()[p];
        T u[3], *of = basis + kMaxComponents * p;
        for (std::size_t a = 0; a < 3; ++a) u[a] = static_cast<T>(list_.vectors()[3 * p + a] * inverse);
        of[0] = static_cast<T>(tensor::kSqrt3);
        for (std::size_t a = 0; a < 3; ++a) of[1 + a] = static_cast<T>(tensor::kSqrt2) * u[a];
        tensor::symmetric(u, of + 4);
        if (tables_) {
          const Place at = place_of(intervals, inverse);
          a_->interval[p] = at.interval;
          place[2 * p] = static_cast<T>(at.t);
          place[2 * p + 1] = static_cast<T>(at.rate);
        } else {
          d[p] = static_cast<T>(list_.distances()[p]);
        }
      }
    });
  }

  void find_excess(const Structure& s) {
    a_->excess.resize(static_cast<std::size_t>(s.atoms));
    const auto id = [&](int atom) { return s.ids ? s.ids[atom] : static_cast<std::int64_t>(atom); };
    pool_.loop(s.atoms, kGatherGrain, [&](int begin, int end, int) {
      for (int row = begin; row < end; ++row) {
        const int first = list_.first()[static_cast<std::size_t>(row)], count = list_.first()[static_cast<std::size_t>(row) + 1] - first;
        a_->excess[static_cast<std::size_t>(row)] = excess(*model_->domain(), a_->slot[static_cast<std::size_t>(row)], count, list_.neighbors().data() + first,
                                                        list_.distances().data() + first, a_->slot.data(), list_.order().data(), a_->features.get() + static_cast<std::size_t>(row * w_->F), id);
      }
    });
  }

  // The stages, forward then backward; with_features: those of the last layer are kept.
  void run(const Structure& s, bool reverse, bool with_features) {
    const Stages<T>& k = stages<T>();
    const int n = s.atoms, L = w_->n_layers;
    const std::size_t size = static_cast<std::size_t>(n + s.ghosts) * static_cast<std::size_t>(w_->C * w_->F);
    const Pairs<T> pairs{list_.first().data(), list_.half().data(), list_.neighbors().data(), a_->distance.get(),
                         a_->basis.get(), tables_ ? a_->interval.data() : nullptr, a_->place.get()};
    const int* slot = a_->slot.data();

    T *raw = a_->raw.resize(size), *mixed = a_->mixed.resize(size), *kept = a_->kept.resize(static_cast<std::size_t>(n) * kept_gates(*w_));
    const auto sized = [&](std::vector<Buffer<T>>& buffers, int count) {
      std::vector<T*> rows;
      while (buffers.size() < static_cast<std::size_t>(count)) buffers.emplace_back();
      for (int l = 0; l < count; ++l) rows.push_back(buffers[static_cast<std::size_t>(l)].resize(size));
      return rows;
    };
    const std::vector<T*> x = sized(a_->x, L + 1), y = sized(a_->y, L), m = sized(a_->m, L), dx = sized(a_->dx, L), sums = sized(a_->sums, w_->own_message ? L : 0);
    a_->head_energies.assign(seeds_.size() * static_cast<std::size_t>(n), 0.0);
    for (std::size_t q = 0; q < seeds_.size(); ++q) seeds_[q].energies = a_->head_energies.data() + q * static_cast<std::size_t>(n);

    const auto in_pieces = [&](const char* name, int grain, auto&& stage) {
      timed(name, [&] {
        pool_.loop(n, grain, [&](int begin, int end, int worker) { stage(begin, end, a_->scratch[static_cast<std::size_t>(worker)].get()); });
      });
    };
    const int share_of_thread = n / (4 * pool_.threads()), gather_grain = std::min(std::max(share_of_thread, kGrain), kGatherGrain);
    const auto over_atoms = [&](const char* name, auto&& stage) { in_pieces(name, kGrain, stage); };
    const auto over_pairs = [&](const char* name, auto&& stage) { in_pieces(name, gather_grain, stage); };
    const auto fill = [&](T* rows, int width) { if (s.fill_ghosts) s.fill_ghosts(rows, static_cast<std::size_t>(width) * sizeof(T)); };
    const int whole = w_->C * w_->F, parts = w_->R * w_->F;

    // What an atom goes through between two gathers is done in one pass, while its rows are at hand.
    T *ax = reverse ? a_->ax.resize(size) : nullptr, *am = reverse ? a_->am.resize(size) : nullptr, *ay = reverse ? a_->ay.resize(size) : nullptr;
    T *araw = am, *asums = reverse && w_->own_message ? a_->asums.resize(size) : nullptr;
    T* features = with_features ? a_->features.resize(static_cast<std::size_t>(n * w_->F)) : nullptr;
    if (reverse) clear_slopes();
    const auto leave = [&](int l, int b, int e, T* t) {  // layer l backwards, up to its messages
      if (l >= 0) k.product_reverse(*w_, l, slot, y[l], m[l], dx[l], ax, am, ay, w_->own_message ? sums[l] : nullptr, asums, b, e, t);
      else k.embedding_mix_reverse(*w_, raw, mixed, kept, ax, araw, b, e, t);
    };
    const auto enter = [&](int l, int b, int e, T* t) {  // layer l up to its messages
      if (l < L) k.mixing(*w_, l, x[l], y[l], b, e, t);
      else k.readout(*w_, slot, x[l], seeds_.data(), static_cast<int>(seeds_.size()), ax, features, b, e, t);
      if (l == L && reverse) leave(L - 1, b, e, t);
    };

    over_pairs("embedding_gather", [&](int b, int e, T* t) { k.embedding_gather(*w_, pairs, slot, raw, b, e, t); });
    over_atoms("embedding_mix", [&](int b, int e, T* t) {
      k.embedding_mix(*w_, raw, x[0], mixed, kept, b, e, t);
      enter(0, b, e, t);
    });
    for (int l = 0; l < L; ++l) {
      if (!w_->own_message) fill(y[l], whole);
      over_pairs("message", [&](int b, int e, T* t) {
        if (w_->own_message) k.own_message(*w_, l, pairs, y[l], m[l], sums[l], b, e, t);
        else k.message(*w_, l, pairs, y[l], m[l], b, e, t);
      });
      over_atoms("product", [&](int b, int e, T* t) {
        k.product(*w_, l, slot, x[l], y[l], m[l], dx[l], x[l + 1], b, e, t);
        enter(l + 1, b, e, t);
      });
    }
    if (w_->repulsion > 0.0) timed("repulsion", [&] { repel(reverse); });
    if (!reverse) return;
    for (int l = L; l--;) {
      if (w_->own_message) fill(asums, parts);
      else fill(am, whole);
      over_pairs("message_reverse", [&](int b, int e, T* t) {
        if (w_->own_message) k.own_message_reverse(*w_, l, pairs, asums, a_->slope.data(), b, e, t);
        else k.message_reverse(*w_, l, pairs, y[l], am, ay, a_->slope.data(), b, e, t);
      });
      over_atoms("mixing_reverse", [&](int b, int e, T* t) {
        k.mixing_reverse(*w_, l, x[l], ay, ax, b, e, t);
        leave(l - 1, b, e, t);
      });
    }
    fill(araw, whole);
    over_pairs("embedding_gather_reverse", [&](int b, int e, T* t) {
      k.embedding_gather_reverse(*w_, pairs, slot, araw, a_->slope.data(), a_->turn.data(), b, e, t);
      find_gradients(b, e);
    });
  }

  // body(p) for every pair of atoms that the rows have, in one of its two directions.
  template <class Body> void over_halves(int begin, int end, const Body& body) {
    for (std::size_t row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row)
      for (std::size_t p = static_cast<std::size_t>(list_.half()[row]); p < static_cast<std::size_t>(list_.first()[row + 1]); ++p) body(p);
  }

  void clear_slopes() {
    a_->slope.resize(list_.neighbors().size()), a_->turn.resize(3 * list_.neighbors().size());
    pool_.loop(static_cast<int>(list_.half().size()), kGatherGrain, [&](int begin, int end, int) {
      over_halves(begin, end, [&](std::size_t p) { a_->slope[p] = a_->turn[3 * p] = a_->turn[3 * p + 1] = a_->turn[3 * p + 2] = 0.0; });
    });
  }

  // dE/dD, where `turn` was, while the rows are at hand.
  void find_gradients(int begin, int end) {
    over_halves(begin, end, [&](std::size_t p) {
      const double inverse = 1.0 / list_.distances()[p], half_root = 1.0 / tensor::kSqrt2;
      const T* basis = a_->basis.get() + kMaxComponents * p + 1;
      const double u[3] = {half_root * basis[0], half_root * basis[1], half_root * basis[2]};
      double* turn = a_->turn.data() + 3 * p;
      const double along = a_->slope[p] - inverse * (turn[0] * u[0] + turn[1] * u[1] + turn[2] * u[2]);
      for (std::size_t a = 0; a < 3; ++a) turn[a] = along * u[a] + inverse * turn[a];
    });
  }

  // The nuclei's repulsion: half of a pair's to the energy of each of its atoms, for every head that has it, and its slope.
  void repel(bool reverse) {
    double weight = 0.0;
    for (const Seed<T>& seed : seeds_)
      if (w_->heads[seed.head].repels) weight += static_cast<double>(seed.weight);
    for (std::size_t row = 0; row + 1 < list_.first().size(); ++row) {
      double energy = 0.0;
      for (int p = list_.first()[row]; p < list_.first()[row + 1]; ++p) {
        const std::size_t pair = static_cast<std::size_t>(p);
        if (list_.distances()[pair] >= w_->repulsion) continue;
        double slope = 0.0;
        energy += 0.5 * repulsion(w_->charge[a_->slot[row]], w_->charge[a_->slot[static_cast<std::size_t>(list_.neighbors()[pair])]], list_.distances()[pair], w_->repulsion, &slope);
        if (reverse && p >= list_.half()[row]) a_->slope[pair] += weight * slope;
      }
      for (const Seed<T>& seed : seeds_)
        if (w_->heads[seed.head].repels) seed.energies[row] += energy;
    }
  }

  // Sums in the order of the atoms, wherever their rows are; in double.
  void collect(const Structure& s, const Request& request, Result& result) {
    const std::size_t n = static_cast<std::size_t>(s.atoms);
    result = Result();
    std::vector<double> head_sums;
    for (const Seed<T>& seed : seeds_) {
      double sum = 0.0;
      for (std::size_t i = 0; i < n; ++i) sum += seed.energies[list_.row_of()[i]];
      head_sums.push_back(sum);
    }
    add_up(*model_, heads_, s, head_sums.data(), result);
    if (request.atom_energies) add_up_atoms(*model_, heads_, s, a_->head_energies.data(), list_.row_of().data(), s.atoms, result);
    if (request.error_bars) add_errors(*model_, heads_, s, a_->features.get(), list_.row_of().data(), w_->F, result);
    if (request.domain && model_->domain()) result.outside = outside(*model_, s, a_->excess, list_.row_of().data(), 0);
    if (request.forces || request.virial || request.atom_virials) {
      // By rows, those of ghosts too, which are nobody's here. Of the virial a ghost has half of a pair: its owner counts the pair too.
      std::vector<double>& forces = a_->forces;
      forces.assign(3 * list_.order().size(), 0.0);
      if (request.atom_virials) result.atom_virials.assign(9 * n, 0.0);
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t row = static_cast<std::size_t>(list_.row_of()[i]), first = static_cast<std::size_t>(list_.half()[row]), last = static_cast<std::size_t>(list_.first()[row + 1]);
        double own[3] = {};
        for (std::size_t p = first; p < last; ++p) {
          const double* g = a_->turn.data() + 3 * p;
          double* other = forces.data() + 3 * static_cast<std::size_t>(list_.neighbors()[p]);
          for (std::size_t a = 0; a < 3; ++a) own[a] += g[a], other[a] -= g[a];
        }
        for (std::size_t a = 0; a < 3; ++a) forces[3 * row + a] += own[a];
        if (!request.virial && !request.atom_virials) continue;
        for (std::size_t p = first; p < last; ++p) {
          const double *g = a_->turn.data() + 3 * p, *D = list_.vectors().data() + 3 * p;
          const std::size_t j = static_cast<std::size_t>(list_.order()[static_cast<std::size_t>(list_.neighbors()[p])]);
          const double weight = j < n ? 1.0 : 0.5;
          for (std::size_t k = 0; k < 9; ++k) {
            const double w = D[k / 3] * g[k % 3];
            result.virial[k] -= weight * w;
            if (!request.atom_virials) continue;
            result.atom_virials[9 * i + k] -= 0.5 * w;
            if (j < n) result.atom_virials[9 * j + k] -= 0.5 * w;
          }
        }
      }
      result.forces.resize(3 * n);
      for (std::size_t i = 0; i < n; ++i) std::copy_n(forces.begin() + 3 * list_.row_of()[i], 3, result.forces.begin() + 3 * static_cast<long>(i));
      check_forces(result);
    }
  }

  const std::shared_ptr<const Model> model_;
  std::vector<State> states_;  // that it has rows for: the model's, and those it has met since
  const Weights<T>* w_;
  Pool pool_;
  SkinList list_;
  const bool tables_;
  const std::shared_ptr<Store<T>> store_ = Store<T>::of_process();
  std::unique_ptr<Arrays<T>> a_;  // while it evaluates
  Heads heads_;
  std::vector<Seed<T>> seeds_;
  std::vector<Result> results_;
  std::vector<std::pair<const char*, double>> laps_;  // of each stage, by the address of its name: a molecule's step is too short for strings
  mutable std::map<std::string, double> times_;
};

}  // namespace

Workspace::Workspace(std::shared_ptr<const Model> model, Options options) {
  if (options.threads < 1 || options.threads > 4096) throw InputError("threads must be from 1 to 4096, not " + std::to_string(options.threads));
  if (!(options.skin >= 0.0) || !std::isfinite(options.skin)) throw InputError("the neighbour list's skin must be zero or a positive length");
#if defined(MFMD_CUDA)
  if (options.cuda >= 0) {
    data_ = cuda::workspace(std::move(model), options);
    return;
  }
#else
  if (options.cuda >= 0) throw InputError("this build of the engine has no CUDA; build it where nvcc is, or use the CPU");
#endif
  if (options.precision == Precision::tf32) throw InputError("precision tf32 is for the tensor cores of a CUDA device; on the CPU use single");
  if (options.precision == Precision::single_) data_.reset(new Evaluation<float>(std::move(model), options));
  else data_.reset(new Evaluation<double>(std::move(model), options));
}
Workspace::~Workspace() = default;
const Result& Workspace::evaluate(const Structure& structure, const Request& request) { return data_->evaluate(&structure, 1, request).front(); }
const std::vector<Result>& Workspace::evaluate(const std::vector<Structure>& structures, const Request& request) {
  return data_->evaluate(structures.data(), static_cast<int>(structures.size()), request);
}
bool Workspace::enqueue(const DeviceStructures& structures, const Request& request, const DeviceResults& results) {
  return data_->enqueue(structures, request, results);
}
#if defined(MFMD_CUDA)
bool has_cuda() { return true; }
#else
bool has_cuda() { return false; }
int cuda_devices() { return 0; }
template <> const TrainingMaps<float>* training_maps_on_device<float>() { return nullptr; }
template <> const TrainingMaps<double>* training_maps_on_device<double>() { return nullptr; }
#endif
std::int64_t Workspace::rebuilds() const { return data_->rebuilds(); }
std::size_t Workspace::ghost_width() const { return data_->ghost_width(); }
const std::map<std::string, double>& Workspace::stage_times() const { return data_->stage_times(); }

}  // namespace mfmd
