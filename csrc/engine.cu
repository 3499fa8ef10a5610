// One evaluation on a CUDA device: the twin of engine.cpp. What a step launches is recorded as a graph and replayed; nothing in it waits for
// the host. What the host has to decide (more room, a sentence for a structure that is refused) it decides after the results.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device_domain.hpp"
#include "device_images.hpp"
#include "device_memory.hpp"
#include "device_stream.hpp"
#include "device_weights.hpp"
#include "domain.hpp"
#include "heads.hpp"
#include "kernels/device.hpp"
#include "kernels/neighbors.hpp"
#include "states.hpp"
#include "tables.hpp"
#include "workspace.hpp"

namespace mfmd {
namespace cuda {

namespace {

constexpr int kOneBin = 512;       // a single system of up to so many atoms is one bin
constexpr double kDensity = 0.12;  // atoms an Å³ that a row has room for at first
constexpr int kOfHost = 8;         // in place of a bit for each periodic direction: the host has the images, and their pairs

int rounded(double room) { return (static_cast<int>(room) + 7) / 8 * 8; }

template <class T> class Evaluation final : public Workspace::Data {
 public:
  Evaluation(std::shared_ptr<const Model> model, const Options& options)
      : model_(std::move(model)), options_(options), weights_(model_->template weights<T>(model_->states()), options.precision == Precision::tf32, own_.stream), states_(model_->states()), w_(weights_.get()) {
    const Weights<T>& host = model_->template weights<T>(states_);
    for (int h = 0; h < host.n_heads; ++h) room_ = std::max(room_, room_of(host.heads[h]));
    const auto layers = static_cast<std::size_t>(w_.n_layers);
    x_ = std::vector<DeviceMemory<T>>(layers + 1);
    for (auto* buffers : {&y_, &m_, &dx_}) *buffers = std::vector<DeviceMemory<T>>(layers);
    if (w_.own_message) sums_ = std::vector<DeviceMemory<T>>(layers);
  }
  ~Evaluation() override {
    try {
      own_.wait();
    } catch (const Error&) {  // a device that has failed has been told of; its memory goes all the same
    }
  }
  std::int64_t rebuilds() const override { return rebuilds_; }
  std::size_t ghost_width() const override { return static_cast<std::size_t>(w_.C * w_.F) * sizeof(T); }
  const std::map<std::string, double>& stage_times() const override { return times_; }

  const std::vector<Result>& evaluate(const Structure* structures, int count, const Request& request) override {
    const OnDevice here(options_.cuda);
    heads_ = heads_of(*model_, request.terms);
    std::vector<int> numbers, begin = {0}, periodic;
    for (int k = 0; k < count; ++k) {
      const Structure& s = structures[k];
      if (s.atoms < 0 || s.ghosts < 0) throw InputError("a structure cannot have fewer than no atoms");
      if (s.ghosts > 0 && (!s.pairs || !s.fill_ghosts)) throw InputError("ghost atoms need the host's pairs and fill_ghosts");
      if (s.pairs && count > 1) throw InputError("on a CUDA device a structure with the host's pairs is evaluated by itself; give them one after the other");
      check_structure(s, request);
      numbers.insert(numbers.end(), s.numbers, s.numbers + s.atoms + s.ghosts);
      begin.push_back(begin.back() + s.atoms);
      periodic.push_back(s.pairs ? kOfHost : s.periodic[0] | s.periodic[1] << 1 | s.periodic[2] << 2);
    }
    refuse_recorded();
    const std::vector<int> slots = slots_of(model_->elements(), states_, structures, count);
    give_rows();
    describe(numbers, begin, periodic, slots, constants_of(*model_, heads_, structures, count));
    if (domain(request)) domain_.give(*model_->domain(), own_.stream);
    if (images_of_host()) step_with_ghosts(structures[0], request);
    else if (atoms_ > 0) step_alone(structures, count, request);
    results_.assign(static_cast<std::size_t>(count), Result());
    for (int k = 0; k < count; ++k) collect(structures[k], k, begin[static_cast<std::size_t>(k)], request, results_[static_cast<std::size_t>(k)]);
    return results_;
  }

  bool enqueue(const DeviceStructures& s, const Request& request, const DeviceResults& results) override {
    const OnDevice here(options_.cuda);
    const cudaStream_t stream = static_cast<cudaStream_t>(s.stream);
    heads_ = heads_of(*model_, request.terms);
    if (request.atom_energies || request.atom_virials || request.error_bars || request.domain) throw InputError("energies and virials of atoms, error bars and what a model was trained on do not come from structures on the device");
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &capturing), "the caller's stream");
    const bool free = capturing == cudaStreamCaptureStatusNone;
    refuse_recorded();
    const bool periodic_somewhere = s.periodic[0] || s.periodic[1] || s.periodic[2];
    if (periodic_somewhere && !s.cells) throw InputError("pbc is set, but there are no cells");
    if (!results.energies) throw InputError("structures on a CUDA device need a place for their energies");
    Request wanted = request;
    wanted.forces = results.forces, wanted.virial = results.virials;
    std::vector<int> begin = {0};
    std::vector<Structure> structures;
    if (std::any_of(s.atoms, s.atoms + s.systems, [](int atoms) { return atoms < 0; })) throw InputError("a structure cannot have fewer than no atoms");
    for (int k = 0; k < s.systems; ++k) {
      Structure one;
      one.atoms = s.atoms[k];
      one.numbers = s.numbers + begin.back();
      if (s.states) one.states = s.states[k];
      if (s.fragment) one.fragment = s.fragment + begin.back();
      check_structure(one, request);
      structures.push_back(one);
      begin.push_back(begin.back() + s.atoms[k]);
    }
    const std::vector<int> periodic(static_cast<std::size_t>(s.systems), s.periodic[0] | s.periodic[1] << 1 | s.periodic[2] << 2);
    if (begin.back() == 0) throw InputError("there are no atoms on the device");
    const std::vector<int> numbers(s.numbers, s.numbers + begin.back());
    const std::size_t rows = states_.size();
    const std::vector<int> slots = slots_of(model_->elements(), states_, structures.data(), s.systems);
    const std::vector<double> constants = constants_of(*model_, heads_, structures.data(), s.systems);
    const bool known = rows == states_.size() && numbers == numbers_ && begin == begin_ && periodic == periodic_ && slots == slots_ && constants == constants_;
    if (!free && !(known && settled_ && listed_ && rows_ == sizes() && (!reverse(wanted) || reverse_rows_ == sizes()) && seeds_given_ == seeds_wanted()))
      throw InputError("before a CUDA graph is recorded, evaluate the same structures, with the same weights of heads, once without it: how much room they need is not known yet");
    if (free) {
      if (known) learn();
      give_rows();
      describe(numbers, begin, periodic, slots, constants);
    }
    Delivery delivery{};
    delivery.energies = results.energies, delivery.to_forces = results.forces, delivery.virials = results.virials;
    delivery.terms = static_cast<int>(heads_.terms.size()), delivery.heads = static_cast<int>(heads_.used.size());
    for (bool room = false; !room;) {
      if (free) {
        make_room(wanted);
        own_.follow(stream);
        settle_seeds();
      }
      copy(part<double>(given_.get(), 0), s.positions, 3 * static_cast<std::size_t>(atoms_), cudaMemcpyDeviceToDevice, stream);
      if (s.cells) copy(part<double>(given_.get(), cells_at()), s.cells, 9 * systems(), cudaMemcpyDeviceToDevice, stream);
      if (free) step(wanted, false, stream);
      else record(wanted, false, stream);
      delivery.combination = part<double>(given_.get(), combination_at()), delivery.constants = delivery.combination + (heads_.terms.size() + 1) * heads_.used.size(), delivery.sums = sums(), delivery.forces = result_.get();
      deliver(list(), delivery, stream);
      recorded_ = !free;
      room = settled_;
      if (free) own_.mark(stream);
      if (settled_) continue;
      // The first time, wait and see how many neighbours there are; from then on there is room for a quarter more.
      own_.wait();
      if (refused()) refuse_given();
      room = enough_room();
      if (!room) continue;
      reach_capacity_ = std::max(reach_capacity_, rounded(1.25 * verdict_.get()->most[0]));
      capacity_ = std::max(capacity_, rounded(1.25 * verdict_.get()->most[1]));
      settled_ = true;
      room = rows_ == sizes();  // with more room, the list is made again
    }
    return !free;
  }

 private:
  void step_alone(const Structure* structures, int count, const Request& request) {
    for (bool room = false; !room;) {
      make_room(request);
      own_.wait();  // the pinned block may be read yet
      give(structures, count);
      step(request, true, own_.stream);
      own_.mark(own_.stream);
      own_.wait();
      seeds_given_ = seeds_wanted();
      if (refused()) refuse(structures, count);
      room = enough_room();
    }
    rebuilds_ += verdict_.get()->stale;
  }

  // The host is asked for the rows of ghosts on the way, on many processes equally often: whatever may end or repeat a step is found before, and nothing
  // is recorded.
  void step_with_ghosts(const Structure& s, const Request& request) {
    reach_capacity_ = std::max(reach_capacity_, rounded(longest_row(s)));
    for (bool room = false; !room;) {
      make_room(request);
      own_.wait();
      give(&s, 1);
      copy(given_.get(), given_host_.get(), given_size(), cudaMemcpyHostToDevice, own_.stream);
      const bool anew = images_.take(s, {s.pairs->version, generation_, reach_capacity_}, own_.stream);
      neighbors(list(), images_.rows(), anew, own_.stream);
      copy(verdict_.get(), verdict_device_.get(), 1, cudaMemcpyDeviceToHost, own_.stream);
      own_.mark(own_.stream);
      own_.wait();
      seeds_given_ = seeds_wanted(), rebuilds_ += anew;
      if (refused() || !std::all_of(s.positions, s.positions + 3 * placed(), [](double x) { return std::isfinite(x); })) refuse(&s, 1);
      room = enough_room();
    }
    stages(request, own_.stream, [&](T* rows, int width) { images_.fill(s, rows, static_cast<std::size_t>(width) * sizeof(T), own_.stream); });
    copy(result_host_.get(), result_.get(), result_size(request), cudaMemcpyDeviceToHost, own_.stream);
    own_.mark(own_.stream);
    own_.wait();
  }

  void refuse_recorded() const {
    if (recorded_) throw InputError("this engine belongs to the CUDA graph it was recorded in; use another one for further evaluations");
  }

  void check_structure(const Structure& s, const Request& request) const {
    check_fragments(s.states.size(), s.fragment, s.atoms + s.ghosts);
    check_elements(*model_, heads_, s);
    check_states(*model_, heads_, s, request.allow_unseen_state);
  }
  // The weights again where there are states that they have no rows for.
  void give_rows() {
    const Weights<T>& host = model_->template weights<T>(states_);
    if (host.slots == w_.slots) return;
    own_.wait();
    weights_.take(host, w_.tf32, own_.stream);
    ++generation_;
  }

  // Sizes, elements, states and periodicity of the structures that follow.
  void describe(const std::vector<int>& numbers, const std::vector<int>& begin, const std::vector<int>& periodic, const std::vector<int>& slots, const std::vector<double>& constants) {
    constants_ = constants;
    const int systems = static_cast<int>(periodic.size());
    const double reach = w_.cutoff + options_.skin;
    int room = rounded(kDensity * 4.0 / 3.0 * 3.14159265358979323846 * reach * reach * reach), largest = 0;
    for (int k = 0; k < systems; ++k) largest = std::max(largest, begin[static_cast<std::size_t>(k) + 1] - begin[static_cast<std::size_t>(k)]);
    if (std::count(periodic.begin(), periodic.end(), 0) == systems) room = std::min(room, rounded(largest));
    reach_capacity_ = std::max(reach_capacity_, room);
    capacity_ = std::max(capacity_, rounded(std::min(1.0, 1.2 * std::pow(w_.cutoff / reach, 3)) * room));
    if (numbers == numbers_ && begin == begin_ && periodic == periodic_ && slots == slots_) return;
    settled_ = listed_ = false;
    seeds_given_.clear(), numbers_.clear(), begin_.clear();  // until all is done
    images_.forget();
    atoms_ = begin.back(), ghosts_ = static_cast<int>(numbers.size()) - atoms_;
    bins_ = systems == 1 && atoms_ > kOneBin && periodic[0] != kOfHost ? atoms_ + kMoreBins : 0;
    std::vector<int> shape;  // begin, periodic, kind, system: one behind the other
    shape.insert(shape.end(), begin.begin(), begin.end());
    shape.insert(shape.end(), periodic.begin(), periodic.end());
    shape.insert(shape.end(), slots.begin(), slots.end());
    for (int k = 0; k < systems; ++k) shape.insert(shape.end(), static_cast<std::size_t>(begin[static_cast<std::size_t>(k) + 1] - begin[static_cast<std::size_t>(k)]), k);
    own_.wait();
    renew(shape_, shape.size());
    check(cudaMemcpyAsync(shape_.get(), shape.data(), shape.size() * sizeof(int), cudaMemcpyHostToDevice, own_.stream), "a copy of the elements");
    check(cudaStreamSynchronize(own_.stream), "a copy of the elements");
    numbers_ = numbers, begin_ = begin, periodic_ = periodic, slots_ = slots;
  }
  std::size_t systems() const { return periodic_.size(); }
  std::size_t placed() const { return static_cast<std::size_t>(atoms_ + ghosts_); }
  bool images_of_host() const { return systems() == 1 && periodic_[0] == kOfHost; }

  template <class U> bool renew(U& memory, std::size_t size) {
    if (memory.holds(size)) return false;
    own_.wait();  // a step that has not ended uses what is given up here
    memory.resize(size);
    ++generation_;
    return true;
  }
  std::vector<std::int64_t> sizes() const { return {atoms_, bins_, reach_capacity_, capacity_}; }

  void make_room(const Request& request) {
    const std::int64_t before = generation_;
    const std::vector<std::int64_t> before_sizes = std::move(rows_);
    rows_.clear();  // until all is done
    if (reverse(request)) reverse_rows_.clear();
    const std::size_t n = static_cast<std::size_t>(atoms_), all = placed(), row = static_cast<std::size_t>(w_.C * w_.F), pairs = n * static_cast<std::size_t>(capacity_);
    const std::size_t slabs = static_cast<std::size_t>(w_.F / kSlab), reach = n * static_cast<std::size_t>(reach_capacity_), bins = static_cast<std::size_t>(bins_);
    renew(grids_, systems()), renew(built_, 3 * n), renew(home_, n), renew(wrap_, 3 * n), renew(start_, bins + 1), renew(cursor_, bins);
    renew(order_, all), renew(row_of_, all), renew(slot_, all);
    renew(found_, reach), renew(reached_, reach), renew(reached_count_, n), renew(entries_, pairs), renew(count_, n), renew(half_, n), renew(j_, pairs);
    renew(vectors_, 3 * pairs), renew(distances_, pairs), renew(basis_, kMaxComponents * pairs), renew(interval_, pairs), renew(place_, 2 * pairs);
    renew(raw_, n * row), renew(mixed_, n * row), renew(kept_, n * kept_gates(w_));
    for (auto* buffers : {&x_, &m_, &dx_})
      for (auto& buffer : *buffers) renew(buffer, n * row);
    for (auto& buffer : y_) renew(buffer, all * row);
    for (auto& buffer : sums_) renew(buffer, n * static_cast<std::size_t>(w_.R * w_.F));
    if (reverse(request)) {
      renew(ax_, n * row), renew(am_, all * row), renew(ay_, n * row), renew(asums_, w_.own_message ? all * static_cast<std::size_t>(w_.R * w_.F) : 0), renew(slope_, slabs * pairs), renew(turn_, 3 * slabs * pairs);
      renew(gradient_, 3 * pairs), renew(atom_virials_, 9 * n);
    }
    if (renew(energies_, heads_.used.size() * n)) seeds_given_.clear();
    if (request.error_bars || domain(request)) renew(features_, n * static_cast<std::size_t>(w_.F));
    if (domain(request)) renew(excess_, n);
    renew(pieces_, (heads_.used.size() + 9) * pieces_of(n));
    const std::size_t found = 3 * n + (heads_.used.size() + 9) * systems();
    if (renew(given_, given_size()) | renew(given_host_, given_size())) seeds_given_.clear();
    renew(result_, found), renew(result_host_, found), renew(verdict_device_, 1), renew(verdict_, 1);
    if (before != generation_ || before_sizes != sizes() || !listed_) {  // the list is made anew: these are the cells of no structure
      own_.wait();
      check(cudaMemsetAsync(grids_.get(), 0xff, systems() * sizeof(Grid), own_.stream), "a list to be made anew");
      check(cudaStreamSynchronize(own_.stream), "a list to be made anew");
    }
    listed_ = true;
    rows_ = sizes();
    if (reverse(request)) reverse_rows_ = rows_;
  }

  // What changes from step to step, in one block: positions, cells, then seeds and the combinations of heads that terms are.
  template <class U> static U* part(unsigned char* block, std::size_t offset) { return reinterpret_cast<U*>(block + offset); }
  std::size_t cells_at() const { return 3 * placed() * sizeof(double); }
  std::size_t combination_at() const { return cells_at() + 9 * systems() * sizeof(double); }
  std::size_t seeds_at() const { return combination_at() + (heads_.used.size() + systems()) * (heads_.terms.size() + 1) * sizeof(double); }

  std::size_t given_size() const { return seeds_at() + heads_.used.size() * sizeof(Seed<T>); }
  // Numbers in result_: forces, sums of heads, virials.
  std::size_t result_size(const Request& request) const { return 3 * static_cast<std::size_t>(atoms_) + (heads_.used.size() + (reverse(request) ? 9u : 0u)) * systems(); }

  // All of it, from the host.
  void give(const Structure* structures, int count) {
    double* to = part<double>(given_host_.get(), 0);
    for (int k = 0; k < count; ++k) to = std::copy_n(structures[k].positions, 3 * static_cast<std::size_t>(structures[k].atoms + structures[k].ghosts), to);
    for (int k = 0; k < count; ++k)
      for (int v = 0; v < 9; ++v) *to++ = structures[k].periodic[v / 3] && !structures[k].pairs ? structures[k].cell[v] : 0.0;
    give_seeds();
  }

  // [terms + 1][used heads]: the weighted sum, then each term; behind them constants_of.
  std::vector<double> combination() const {
    std::vector<double> out, terms = mfmd::combination(*model_, heads_);
    for (const Heads::Used& used : heads_.used) out.push_back(used.weight);
    out.insert(out.end(), terms.begin(), terms.end());
    out.insert(out.end(), constants_.begin(), constants_.end());
    return out;
  }
  // The same, and which heads they are.
  std::vector<double> seeds_wanted() const {
    std::vector<double> out = combination();
    out.push_back(static_cast<double>(heads_.terms.size()));
    for (const Heads::Used& used : heads_.used) out.push_back(used.head);
    return out;
  }
  void give_seeds() {
    const std::vector<double> rows = combination();
    std::copy(rows.begin(), rows.end(), part<double>(given_host_.get(), combination_at()));
    Seed<T>* seed = part<Seed<T>>(given_host_.get(), seeds_at());
    for (std::size_t q = 0; q < heads_.used.size(); ++q)
      seed[q] = {heads_.used[q].head, static_cast<T>(heads_.used[q].weight), energies_.get() + q * static_cast<std::size_t>(atoms_)};
  }
  // For steps that copy no seeds: only others than before are worth waiting for.
  void settle_seeds() {
    if (seeds_given_ == seeds_wanted()) return;
    own_.wait();
    give_seeds();
    const std::size_t begin = combination_at(), end = given_size();
    check(cudaMemcpyAsync(given_.get() + begin, given_host_.get() + begin, end - begin, cudaMemcpyHostToDevice, own_.stream), "a copy of the weights of heads");
    check(cudaStreamSynchronize(own_.stream), "a copy of the weights of heads");
    seeds_given_ = seeds_wanted();
  }

  bool domain(const Request& request) const { return request.domain && model_->domain(); }
  static bool reverse(const Request& request) { return request.forces || request.virial || request.atom_virials; }

  bool enough_room() {
    const Verdict& v = *verdict_.get();
    if (v.most[0] <= reach_capacity_ && v.most[1] <= capacity_) return true;
    reach_capacity_ = std::max(reach_capacity_, rounded(1.1 * v.most[0]));
    capacity_ = std::max(capacity_, rounded(1.1 * v.most[1]));
    return false;
  }

  bool refused() const { return verdict_.get()->refused || verdict_.get()->overlap || verdict_.get()->most[0] > kMostNeighbors; }

  // What the last step that has ended says, without waiting for one that has not: more room before it is needed, or a sentence.
  void learn() {
    if (!settled_) return;
    if (refused()) refuse_given();
    const Verdict& v = *verdict_.get();
    settled_ = v.most[0] <= reach_capacity_ && v.most[1] <= capacity_;
    if (v.most[0] > 0.95 * reach_capacity_) reach_capacity_ = rounded(1.25 * v.most[0]);
    if (v.most[1] > 0.95 * capacity_) capacity_ = rounded(1.25 * v.most[1]);
  }

  void step(const Request& request, bool of_host, cudaStream_t stream) {
    const std::vector<std::int64_t> key = {atoms_, static_cast<std::int64_t>(systems()), bins_, reach_capacity_, capacity_, static_cast<std::int64_t>(heads_.used.size()),
                                           static_cast<std::int64_t>(heads_.terms.size()), reverse(request), request.error_bars, domain(request), of_host};
    recordings_.run(generation_, key, own_.stream, stream, [&](cudaStream_t s) { record(request, of_host, s); });
  }

  template <class U> void copy(U* to, const U* from, std::size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, size * sizeof(U), kind, stream), "a copy");
  }

  double* sums() const { return result_.get() + 3 * static_cast<std::size_t>(atoms_); }

  List list() const {
    const int n = atoms_;
    const int* shape = shape_.get();
    List l{};
    l.atoms = n, l.ghosts = ghosts_, l.systems = static_cast<int>(systems()), l.bins = bins_, l.reach_capacity = reach_capacity_, l.capacity = capacity_;
    l.cutoff = w_.cutoff, l.skin = options_.skin, l.closest = kFirstKnot;
    l.positions = part<double>(given_.get(), 0), l.cells = part<double>(given_.get(), cells_at());
    l.begin = shape, l.periodic = l.begin + systems() + 1, l.kind = l.periodic + systems(), l.system = l.kind + n + ghosts_, l.ids = images_.ids();
    l.grids = grids_.get(), l.built = built_.get(), l.home = home_.get(), l.wrap = wrap_.get(), l.start = start_.get(), l.cursor = cursor_.get();
    l.order = order_.get(), l.row_of = row_of_.get(), l.slot = slot_.get();
    l.found = found_.get(), l.reached = reached_.get(), l.reached_count = reached_count_.get(), l.entries = entries_.get();
    l.count = count_.get(), l.half = half_.get(), l.j = j_.get(), l.vectors = vectors_.get(), l.distances = distances_.get();
    l.verdict = verdict_device_.get();
    return l;
  }

  // A step; of the host: with its input before and results afterwards.
  void record(const Request& request, bool of_host, cudaStream_t stream) {
    if (of_host) copy(given_.get(), given_host_.get(), given_size(), cudaMemcpyHostToDevice, stream);
    neighbors(list(), stream);
    stages(request, stream, [](T*, int) {});
    if (of_host) copy(result_host_.get(), result_.get(), result_size(request), cudaMemcpyDeviceToHost, stream);
    copy(verdict_.get(), verdict_device_.get(), 1, cudaMemcpyDeviceToHost, stream);
  }

  // The stages, forward then backward; fill(rows, width): brings the rows of ghosts.
  template <class Fill> void stages(const Request& request, cudaStream_t stream, const Fill& fill) {
    const int n = atoms_, L = w_.n_layers, heads = static_cast<int>(heads_.used.size()), whole = w_.C * w_.F, parts = w_.R * w_.F;
    const List list = this->list();
    const Pairs<T> pairs{capacity_, count_.get(), half_.get(), j_.get(), basis_.get(), interval_.get(), place_.get()};
    const int* slot = slot_.get();
    const Seed<T>* seeds = part<Seed<T>>(given_.get(), seeds_at());
    const bool backward = reverse(request);
    T *raw = raw_.get(), *mixed = mixed_.get(), *kept = kept_.get(), *ax = backward ? ax_.get() : nullptr, *am = am_.get(), *ay = ay_.get(), *slope = slope_.get();
    const auto rows = [](std::vector<DeviceMemory<T>>& buffers, int l) { return buffers[static_cast<std::size_t>(l)].get(); };

    radial(list, w_.intervals, basis_.get(), interval_.get(), place_.get(), stream);
    embedding_gather(w_, pairs, slot, raw, n, stream);
    embedding_mix(w_, raw, rows(x_, 0), mixed, kept, L > 0 ? rows(y_, 0) : nullptr, n, stream);
    for (int l = 0; l < L; ++l) {
      if (!w_.own_message) fill(rows(y_, l), whole);
      if (w_.own_message) own_message(w_, l, pairs, rows(y_, l), rows(m_, l), rows(sums_, l), n, stream);
      else message(w_, l, pairs, rows(y_, l), rows(m_, l), n, stream);
      product(w_, l, slot, rows(x_, l), rows(y_, l), rows(m_, l), rows(dx_, l), rows(x_, l + 1), l + 1 < L ? rows(y_, l + 1) : nullptr, n, stream);
    }
    const auto leaving = [&](int l) {
      if (l < 0) return Leaving<T>{l, nullptr, nullptr, nullptr, am, nullptr, raw, mixed, kept, nullptr, nullptr, slot};
      return Leaving<T>{l, rows(y_, l), rows(m_, l), rows(dx_, l), am, ay, nullptr, nullptr, nullptr, w_.own_message ? rows(sums_, l) : nullptr, asums_.get(), slot};
    };
    readout(w_, slot, rows(x_, L), seeds, heads, room_, ax, request.error_bars || domain(request) ? features_.get() : nullptr, leaving(L - 1), n, stream);
    if (domain(request)) find_excess(list, domain_.get(), features_.get(), excess_.get(), stream);
    if (backward) {
      for (int l = L; l--;) {
        if (w_.own_message) fill(asums_.get(), parts);
        else fill(am, whole);
        if (w_.own_message) own_message_reverse(w_, l, pairs, asums_.get(), slope, l == L - 1, n, stream);
        else message_reverse(w_, l, pairs, rows(y_, l), am, ay, slope, l == L - 1, n, stream);
        mixing_reverse(w_, l, rows(x_, l), ay, ax, leaving(l - 1), n, stream);
      }
      fill(am, whole);
      embedding_gather_reverse(w_, pairs, slot, am, slope, turn_.get(), L == 0, n, stream);
    }
    if (w_.repulsion > 0.0) repel(w_, list, seeds, heads, backward ? slope : nullptr, stream);
    if (backward) cuda::collect(list, w_.F / kSlab, slope, turn_.get(), gradient_.get(), result_.get(), atom_virials_.get(), stream);
    sum(list, {energies_.get(), heads, backward ? atom_virials_.get() : nullptr}, pieces_.get(), sums(), stream);
  }

  // The CPU's list says in a sentence what is wrong with a structure.
  [[noreturn]] void refuse(const Structure* structures, int count) {
    listed_ = false;
    *verdict_.get() = {};
    Pool pool(1);
    for (int k = 0; k < count; ++k) SkinList(w_.cutoff, options_.skin).update(structures[k], kFirstKnot, pool);
    throw InputError("the CUDA device refuses a structure in which the CPU finds no fault; please report it");
  }
  // Of the step before this one, unless a later one has ended well since.
  void refuse_given() {
    own_.wait();
    if (!refused()) return;
    const std::vector<double> given = fetch(part<double>(given_.get(), 0), 3 * static_cast<std::size_t>(atoms_) + 9 * systems());
    std::vector<Structure> structures(systems());
    for (std::size_t k = 0; k < systems(); ++k) {
      Structure& s = structures[k];
      s.atoms = begin_[k + 1] - begin_[k];
      s.positions = given.data() + 3 * begin_[k], s.numbers = numbers_.data() + begin_[k], s.cell = given.data() + 3 * atoms_ + 9 * static_cast<int>(k);
      for (int a = 0; a < 3; ++a) s.periodic[a] = periodic_[k] >> a & 1;
    }
    refuse(structures.data(), static_cast<int>(structures.size()));
  }

  template <class U> std::vector<U> fetch(const U* from, std::size_t size) const {
    std::vector<U> out(size);
    check(cudaMemcpyAsync(out.data(), from, size * sizeof(U), cudaMemcpyDeviceToHost, own_.stream), "a copy of results");
    check(cudaStreamSynchronize(own_.stream), "a copy of results");
    return out;
  }

  void collect(const Structure& s, int system, int begin, const Request& request, Result& result) {
    const std::size_t n = static_cast<std::size_t>(s.atoms), all = static_cast<std::size_t>(atoms_), first = static_cast<std::size_t>(begin);
    const double* sums = result_host_.get() + 3 * all + static_cast<std::size_t>(system);
    const auto sum_of = [&](std::size_t q) { return atoms_ > 0 ? sums[q * systems()] : 0.0; };
    std::vector<double> head_sums;
    for (std::size_t q = 0; q < heads_.used.size(); ++q) head_sums.push_back(sum_of(q));
    add_up(*model_, heads_, s, head_sums.data(), result);
    if (reverse(request)) {
      if (n) result.forces.assign(result_host_.get() + 3 * first, result_host_.get() + 3 * (first + n));
      for (std::size_t k = 0; k < 9; ++k) result.virial[k] = sum_of(heads_.used.size() + k);
      if (request.atom_virials && n) result.atom_virials = fetch(atom_virials_.get() + 9 * first, 9 * n);
      check_forces(result);
    }
    if (!n || !(request.atom_energies || request.error_bars || domain(request))) {
      if (request.error_bars) result.term_errors.assign(heads_.terms.size(), 0.0);
      return;
    }
    const std::vector<int> row_of = fetch(row_of_.get() + first, n);
    if (request.atom_energies) add_up_atoms(*model_, heads_, s, fetch(energies_.get(), heads_.used.size() * all).data(), row_of.data(), atoms_, result);
    if (request.error_bars) add_errors(*model_, heads_, s, fetch(features_.get(), all * static_cast<std::size_t>(w_.F)).data(), row_of.data(), w_.F, result);
    if (domain(request)) result.outside = outside(*model_, s, fetch(excess_.get(), all), row_of.data(), begin);
  }

  const std::shared_ptr<const Model> model_;
  const Options options_;
  Stream own_;
  DeviceWeights<T> weights_;
  std::vector<State> states_;  // that there are rows for: the model's, and those that were met since
  const Weights<T>& w_;
  int room_ = 0;

  Heads heads_;
  std::vector<int> numbers_, begin_, periodic_, slots_;  // of the structures before, one behind the other
  std::vector<double> constants_;  // of the structures now
  int atoms_ = 0, ghosts_ = 0, bins_ = 0, reach_capacity_ = 0, capacity_ = 0;
  std::vector<std::int64_t> rows_, reverse_rows_;  // sizes that there is room for, and for the reverse pass
  std::vector<double> seeds_given_;  // what the device has of weights and combinations
  bool listed_ = false, settled_ = false;  // there is a list of these sizes; enough room is known for structures on the device
  std::int64_t rebuilds_ = 0;

  DeviceMemory<double> built_, vectors_, distances_, gradient_, atom_virials_, energies_, pieces_, result_;
  DeviceMemory<int> shape_, home_, wrap_, start_, cursor_, order_, row_of_, slot_, reached_count_, count_, half_, j_, interval_;
  DeviceDomain domain_;
  DeviceImages images_;
  DeviceMemory<Excess> excess_;
  DeviceMemory<Grid> grids_;
  DeviceMemory<Entry> found_, reached_, entries_;
  DeviceMemory<T> basis_, place_, raw_, mixed_, kept_, ax_, am_, ay_, asums_, slope_, turn_, features_;
  std::vector<DeviceMemory<T>> x_, y_, m_, dx_, sums_;
  DeviceMemory<unsigned char> given_;
  PinnedMemory<unsigned char> given_host_;
  PinnedMemory<double> result_host_;
  DeviceMemory<Verdict> verdict_device_;
  PinnedMemory<Verdict> verdict_;

  std::int64_t generation_ = 0;
  Recordings recordings_;
  bool recorded_ = false;  // in a graph of the caller's
  std::vector<Result> results_;
  std::map<std::string, double> times_;
};

}  // namespace

std::unique_ptr<Workspace::Data> workspace(std::shared_ptr<const Model> model, const Options& options) {
  if (options.cuda >= cuda_devices())
    throw InputError("there is no CUDA device number " + std::to_string(options.cuda) + "; this machine has " + std::to_string(cuda_devices()));
  if (!options.tables) throw InputError("a CUDA device evaluates radial functions from tables; exactly, the CPU does");
  const OnDevice here(options.cuda);
  if (options.precision == Precision::double_) return std::make_unique<Evaluation<double>>(std::move(model), options);
  return std::make_unique<Evaluation<float>>(std::move(model), options);
}

}  // namespace cuda
}  // namespace mfmd
