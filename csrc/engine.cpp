// One evaluation from positions to energies, forces and virial.
#include "mfmd.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "kernels/neighbors.hpp"
#include "kernels/stages.hpp"
#include "kernels/tensor.hpp"
#include "packing.hpp"
#include "tables.hpp"
#include "threads.hpp"

namespace mfmd {

namespace generic { template <class T> const Stages<T>& table(); }
#if defined(MFMD_X86)
namespace avx2 { template <class T> const Stages<T>& table(); }
namespace avx512 { template <class T> const Stages<T>& table(); }
#endif

// The best the machine has, or a lesser one that MFMD_SIMD names.
template <class T> const Stages<T>& stages() {
  const char* wanted = std::getenv("MFMD_SIMD");
  const std::string name = wanted ? wanted : "";
#if defined(MFMD_X86)
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has512 && (name.empty() || name == "avx512")) return avx512::table<T>();
  if (has2 && (name.empty() || name == "avx2")) return avx2::table<T>();
#endif
  if (name.empty() || name == "generic") return generic::table<T>();
  throw InputError("MFMD_SIMD is " + name + ", which this machine does not have (or which is none of generic, avx2, avx512)");
}
template const Stages<float>& stages<float>();
template const Stages<double>& stages<double>();

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

struct Workspace::Data {
  virtual ~Data() = default;
  virtual const Result& evaluate(const Structure& structure, const Request& request) = 0;
  virtual std::int64_t rebuilds() const = 0;
  virtual std::size_t ghost_width() const = 0;
  virtual const std::map<std::string, double>& stage_times() const = 0;
};

namespace {

template <class T> class Evaluation final : public Workspace::Data {
 public:
  Evaluation(std::shared_ptr<const Model> model, const Options& options)
      : model_(std::move(model)), w_(model_->weights<T>()), pool_(options.threads), list_(w_.cutoff, options.skin), tables_(options.tables) {
    for (int k = 0; k < pool_.threads(); ++k) scratch_.emplace_back().resize(scratch_size(w_));
    x_.resize(static_cast<std::size_t>(w_.n_layers) + 1);
    for (auto* buffers : {&y_, &m_, &dx_}) buffers->resize(static_cast<std::size_t>(w_.n_layers));
  }
  std::int64_t rebuilds() const override { return list_.rebuilds(); }
  std::size_t ghost_width() const override { return static_cast<std::size_t>(w_.C * w_.F) * sizeof(T); }
  const std::map<std::string, double>& stage_times() const override { return times_; }

  const Result& evaluate(const Structure& s, const Request& request) override {
    if (s.atoms < 0 || s.ghosts < 0) throw InputError("a structure cannot have fewer than no atoms");
    if (s.ghosts > 0 && (!s.pairs || !s.fill_ghosts)) throw InputError("ghost atoms need the host's pairs and fill_ghosts");
    plan(request);
    check_elements(s);
    timed("neighbors", [&] {
      list_.update(s, kFirstKnot, pool_);
      find_slots(s);
      round_pairs();
    });
    run(s, request.forces || request.virial || request.atom_virials, request.error_bars);
    timed("collect", [&] { collect(s, request); });
    return result_;
  }

 private:
  template <class Body> void timed(const char* name, const Body& body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    times_[name] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  // Terms are heads with weights; a relative head drags in what it is relative to. Seeds are the heads themselves.
  void plan(const Request& request) {
    const auto& levels = model_->levels();
    std::vector<double> weight(levels.size(), 0.0);
    std::vector<bool> used(levels.size(), false);
    terms_ = request.terms;
    if (terms_.empty()) throw InputError("no term to evaluate: name a head");
    for (const Term& term : terms_) {
      if (term.head < 0 || term.head >= static_cast<int>(levels.size())) throw InputError("there is no head number " + std::to_string(term.head));
      if (!std::isfinite(term.weight)) throw InputError("the weight of head " + levels[static_cast<std::size_t>(term.head)].name + " is not finite");
      for (int h = term.head; h >= 0; h = levels[static_cast<std::size_t>(h)].relative_to)
        weight[static_cast<std::size_t>(h)] += term.weight, used[static_cast<std::size_t>(h)] = true;
    }
    seeds_.clear();
    seed_of_.assign(levels.size(), -1);
    for (std::size_t h = 0; h < levels.size(); ++h)
      if (used[h]) {
        seed_of_[h] = static_cast<int>(seeds_.size());
        seeds_.push_back({static_cast<int>(h), static_cast<T>(weight[h]), nullptr});
      }
  }

  void check_elements(const Structure& s) const {
    std::vector<bool> trained(119);
    for (const Seed<T>& seed : seeds_) {
      const Level& level = model_->levels()[static_cast<std::size_t>(seed.head)];
      trained.assign(119, false);
      for (const int z : level.elements) trained[static_cast<std::size_t>(z)] = true;
      for (int i = 0; i < s.atoms + s.ghosts; ++i) {
        const int z = s.numbers[i];
        if (z >= 1 && z <= 118 && trained[static_cast<std::size_t>(z)]) continue;
        std::string known;
        for (const int e : level.elements) known += " " + symbol(e);
        throw InputError("atom " + std::to_string(i) + " is " + symbol(z) + ", and head " + level.name + " was trained on" + known + " only");
      }
    }
  }

  void find_slots(const Structure& s) {
    const auto& elements = model_->elements();
    std::vector<int> slot_of(119, -1);
    for (std::size_t k = 0; k < elements.size(); ++k) slot_of[static_cast<std::size_t>(elements[k])] = static_cast<int>(k);
    slot_.resize(list_.order().size());
    for (std::size_t row = 0; row < slot_.size(); ++row) slot_[row] = slot_of[static_cast<std::size_t>(s.numbers[list_.order()[row]])];
  }

  void round_pairs() {
    const std::size_t pairs = list_.neighbors().size();
    T* d = distance_.resize(pairs);
    T* u = direction_.resize(3 * pairs);
    T* basis = basis_.resize(kMaxComponents * pairs);
    knot_.resize(tables_ ? pairs : 0);
    T* hermite_of = hermite_.resize(tables_ ? kHermite * pairs : 0);
    const double per_log = (w_.knots - 1) / std::log(w_.cutoff / kFirstKnot);
    pool_.loop(static_cast<int>(pairs), 1024, [&](int begin, int end, int) {
      for (std::size_t p = static_cast<std::size_t>(begin); p < static_cast<std::size_t>(end); ++p) {
        const double r = list_.distances()[p];
        d[p] = static_cast<T>(r);
        for (std::size_t a = 0; a < 3; ++a) u[3 * p + a] = static_cast<T>(list_.vectors()[3 * p + a] / r);
        basis[kMaxComponents * p] = static_cast<T>(tensor::kSqrt3);
        for (std::size_t a = 0; a < 3; ++a) basis[kMaxComponents * p + 1 + a] = static_cast<T>(tensor::kSqrt2) * u[3 * p + a];
        tensor::symmetric(u + 3 * p, basis + kMaxComponents * p + 4);
        if (!tables_) continue;
        const double t = per_log * std::log(r / kFirstKnot);
        knot_[p] = std::min(w_.knots - 2, static_cast<int>(t));
        double value[6], slope[6];
        hermite(t - knot_[p], value, slope);
        for (std::size_t k = 0; k < 6; ++k) {
          hermite_of[kHermite * p + k] = static_cast<T>(value[k]);
          hermite_of[kHermite * p + 6 + k] = static_cast<T>(slope[k] * per_log / r);
        }
      }
    });
  }

  // The stages, forward then backward.
  void run(const Structure& s, bool reverse, bool error_bars) {
    const Stages<T>& k = stages<T>();
    const int n = s.atoms, L = w_.n_layers;
    const std::size_t size = static_cast<std::size_t>(n + s.ghosts) * static_cast<std::size_t>(w_.C * w_.F);
    const Pairs<T> pairs{list_.first().data(), list_.half().data(), list_.neighbors().data(),          distance_.get(),
                         direction_.get(),     basis_.get(),        tables_ ? knot_.data() : nullptr, hermite_.get()};
    const int* slot = slot_.data();

    T *raw = raw_.resize(size), *mixed = mixed_.resize(size), *kept = kept_.resize(static_cast<std::size_t>(n) * kept_gates(w_));
    const auto sized = [&](std::vector<Buffer<T>>& buffers) {
      std::vector<T*> rows;
      for (Buffer<T>& b : buffers) rows.push_back(b.resize(size));
      return rows;
    };
    const std::vector<T*> x = sized(x_), y = sized(y_), m = sized(m_), dx = sized(dx_);
    head_energies_.assign(seeds_.size() * static_cast<std::size_t>(n), 0.0);
    for (std::size_t q = 0; q < seeds_.size(); ++q) seeds_[q].energies = head_energies_.data() + q * static_cast<std::size_t>(n);

    const auto in_pieces = [&](const char* name, int grain, auto&& stage) {
      timed(name, [&] {
        pool_.loop(n, grain, [&](int begin, int end, int worker) { stage(begin, end, scratch_[static_cast<std::size_t>(worker)].get()); });
      });
    };
    const int share_of_thread = n / (4 * pool_.threads()), gather_grain = std::min(std::max(share_of_thread, kGrain), kGatherGrain);
    const auto over_atoms = [&](const char* name, auto&& stage) { in_pieces(name, kGrain, stage); };
    const auto over_pairs = [&](const char* name, auto&& stage) { in_pieces(name, gather_grain, stage); };
    const auto fill = [&](T* rows) { if (s.fill_ghosts) s.fill_ghosts(rows, ghost_width()); };

    // What an atom goes through between two gathers is done in one pass, while its rows are at hand.
    T *ax = reverse ? ax_.resize(size) : nullptr, *am = reverse ? am_.resize(size) : nullptr, *ay = reverse ? ay_.resize(size) : nullptr;
    T* araw = am;
    T* features = error_bars ? features_.resize(static_cast<std::size_t>(n * w_.F)) : nullptr;
    if (reverse) slope_.assign(list_.neighbors().size(), 0.0), turn_.assign(3 * list_.neighbors().size(), 0.0);
    const auto leave = [&](int l, int b, int e, T* t) {  // layer l backwards, up to its messages
      if (l >= 0) k.product_reverse(w_, l, y[l], m[l], dx[l], ax, am, ay, b, e, t);
      else k.embedding_mix_reverse(w_, raw, mixed, kept, ax, araw, b, e, t);
    };
    const auto enter = [&](int l, int b, int e, T* t) {  // layer l up to its messages
      if (l < L) k.mixing(w_, l, x[l], y[l], b, e, t);
      else k.readout(w_, slot, x[l], seeds_.data(), static_cast<int>(seeds_.size()), ax, features, b, e, t);
      if (l == L && reverse) leave(L - 1, b, e, t);
    };

    over_pairs("embedding_gather", [&](int b, int e, T* t) { k.embedding_gather(w_, pairs, slot, raw, b, e, t); });
    over_atoms("embedding_mix", [&](int b, int e, T* t) {
      k.embedding_mix(w_, raw, x[0], mixed, kept, b, e, t);
      enter(0, b, e, t);
    });
    for (int l = 0; l < L; ++l) {
      fill(y[l]);
      over_pairs("message", [&](int b, int e, T* t) { k.message(w_, l, pairs, y[l], m[l], b, e, t); });
      over_atoms("product", [&](int b, int e, T* t) {
        k.product(w_, l, x[l], y[l], m[l], dx[l], x[l + 1], b, e, t);
        enter(l + 1, b, e, t);
      });
    }
    if (!reverse) return;
    for (int l = L; l--;) {
      fill(am);
      over_pairs("message_reverse", [&](int b, int e, T* t) { k.message_reverse(w_, l, pairs, y[l], am, ay, slope_.data(), b, e, t); });
      over_atoms("mixing_reverse", [&](int b, int e, T* t) {
        k.mixing_reverse(w_, l, x[l], ay, ax, b, e, t);
        leave(l - 1, b, e, t);
      });
    }
    fill(araw);
    over_pairs("embedding_gather_reverse", [&](int b, int e, T* t) { k.embedding_gather_reverse(w_, pairs, slot, araw, slope_.data(), turn_.data(), b, e, t); });
  }

  // Sums in the order of the atoms, wherever their rows are; in double.
  void collect(const Structure& s, const Request& request) {
    const std::size_t n = static_cast<std::size_t>(s.atoms);
    const auto& levels = model_->levels();
    result_ = Result();
    result_.term_energies.assign(terms_.size(), 0.0);
    if (request.atom_energies) result_.atom_energies.assign(n, 0.0);
    for (std::size_t t = 0; t < terms_.size(); ++t) {
      for (int h = terms_[t].head; h >= 0; h = levels[static_cast<std::size_t>(h)].relative_to) {
        const double* energies = seeds_[static_cast<std::size_t>(seed_of_[static_cast<std::size_t>(h)])].energies;
        for (std::size_t i = 0; i < n; ++i) {
          const double energy = energies[list_.row_of()[i]];
          result_.term_energies[t] += energy;
          if (request.atom_energies) result_.atom_energies[i] += terms_[t].weight * energy;
        }
      }
      result_.energy += terms_[t].weight * result_.term_energies[t];
    }
    if (request.error_bars)
      for (const Term& term : terms_) result_.term_errors.push_back(levels[static_cast<std::size_t>(term.head)].error_bars ? error_of(s, term.head) : NAN);
    if (!std::isfinite(result_.energy)) throw InputError("the energy is not finite; the structure is far outside what the model was trained on");
    if (request.forces || request.virial || request.atom_virials) {
      result_.forces.assign(3 * n, 0.0);
      if (request.atom_virials) result_.atom_virials.assign(9 * n, 0.0);
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t row = static_cast<std::size_t>(list_.row_of()[i]);
        for (std::size_t p = static_cast<std::size_t>(list_.half()[row]); p < static_cast<std::size_t>(list_.first()[row + 1]); ++p) {
          const std::size_t j = static_cast<std::size_t>(list_.order()[static_cast<std::size_t>(list_.neighbors()[p])]);
          const double *D = list_.vectors().data() + 3 * p, *turn = turn_.data() + 3 * p, r = list_.distances()[p];
          const double along = (turn[0] * D[0] + turn[1] * D[1] + turn[2] * D[2]) / (r * r);
          const double weight = j < n ? 1.0 : 0.5;  // of the virial: the owner of a ghost counts the pair too
          for (std::size_t a = 0; a < 3; ++a) {
            const double g = (slope_[p] * D[a] + turn[a] - along * D[a]) / r;  // dE/dD
            result_.forces[3 * i + a] += g;
            if (j < n) result_.forces[3 * j + a] -= g;
            for (std::size_t b = 0; b < 3; ++b) {
              result_.virial[3 * b + a] -= weight * D[b] * g;
              if (!request.atom_virials) continue;
              result_.atom_virials[9 * i + 3 * b + a] -= 0.5 * D[b] * g;
              if (j < n) result_.atom_virials[9 * j + 3 * b + a] -= 0.5 * D[b] * g;
            }
          }
        }
      }
      for (const double f : result_.forces)
        if (!std::isfinite(f)) throw InputError("a force is not finite; the structure is far outside what the model was trained on");
    }
  }

  // Standard deviation of a head's energy: see ErrorBars.
  double error_of(const Structure& s, int head) const {
    const Level& level = model_->levels()[static_cast<std::size_t>(head)];
    const ErrorBars& bars = model_->error_bars(head);
    if (bars.members) return spread_of(s, level, bars);
    const std::size_t F = static_cast<std::size_t>(w_.F), size = level.elements.size() * (F + 1);
    std::vector<double> phi(size, 0.0);
    for (std::size_t i = 0; i < static_cast<std::size_t>(s.atoms); ++i) {
      const auto kind = static_cast<std::size_t>(std::lower_bound(level.elements.begin(), level.elements.end(), s.numbers[i]) - level.elements.begin());
      const T* own = features_.get() + static_cast<std::size_t>(list_.row_of()[i]) * F;
      for (std::size_t f = 0; f < F; ++f) phi[kind * (F + 1) + f] += own[f] - bars.isolated[kind * F + f];
      phi[kind * (F + 1) + F] += 1.0;
    }
    double variance = bars.noise * s.atoms;
    for (std::size_t column = 0; column < size; ++column) {
      double sum = 0.0;
      for (std::size_t row = column; row < size; ++row) sum += bars.factor[row * size + column] * phi[row];
      variance += sum * sum;
    }
    return std::sqrt(variance);
  }

  double spread_of(const Structure& s, const Level& level, const ErrorBars& bars) const {
    const std::size_t F = static_cast<std::size_t>(w_.F), members = static_cast<std::size_t>(bars.members), H = bars.bias.size(), own = H / members;
    std::vector<double> energies(members, 0.0);
    for (std::size_t i = 0; i < static_cast<std::size_t>(s.atoms); ++i) {
      const auto kind = static_cast<std::size_t>(std::lower_bound(level.elements.begin(), level.elements.end(), s.numbers[i]) - level.elements.begin());
      const T* feature = features_.get() + static_cast<std::size_t>(list_.row_of()[i]) * F;
      for (std::size_t k = 0; k < H; ++k) {
        double a = bars.bias[k];
        for (std::size_t f = 0; f < F; ++f) a += bars.hidden[k * F + f] * feature[f];
        energies[k / own] += static_cast<double>(members) * bars.out[k] * a / (1.0 + std::exp(-a));
      }
      for (std::size_t m = 0; m < members; ++m) energies[m] -= bars.alone[kind * members + m];
    }
    double mean = 0.0, variance = 0.0;
    for (const double e : energies) mean += e / static_cast<double>(members);
    for (const double e : energies) variance += (e - mean) * (e - mean) / static_cast<double>(members - 1);
    return bars.scale * bars.calibration * std::sqrt(variance);
  }

  const std::shared_ptr<const Model> model_;
  const Weights<T>& w_;
  Pool pool_;
  SkinList list_;
  const bool tables_;
  std::vector<int> knot_;
  std::vector<Buffer<T>> scratch_;
  std::vector<Term> terms_;
  std::vector<Seed<T>> seeds_;
  std::vector<int> seed_of_, slot_;
  std::vector<double> head_energies_, slope_, turn_;
  Buffer<T> distance_, direction_, basis_, hermite_, raw_, mixed_, kept_, ax_, am_, ay_, features_;
  std::vector<Buffer<T>> x_, y_, m_, dx_;
  Result result_;
  std::map<std::string, double> times_;
};

}  // namespace

Workspace::Workspace(std::shared_ptr<const Model> model, Options options) {
  if (options.threads < 1 || options.threads > 4096) throw InputError("threads must be from 1 to 4096, not " + std::to_string(options.threads));
  if (!(options.skin >= 0.0) || !std::isfinite(options.skin)) throw InputError("the neighbour list's skin must be zero or a positive length");
  if (options.precision == Precision::single_) data_.reset(new Evaluation<float>(std::move(model), options));
  else data_.reset(new Evaluation<double>(std::move(model), options));
}
Workspace::~Workspace() = default;
const Result& Workspace::evaluate(const Structure& structure, const Request& request) { return data_->evaluate(structure, request); }
std::int64_t Workspace::rebuilds() const { return data_->rebuilds(); }
std::size_t Workspace::ghost_width() const { return data_->ghost_width(); }
const std::map<std::string, double>& Workspace::stage_times() const { return data_->stage_times(); }

}  // namespace mfmd
