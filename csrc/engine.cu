// One evaluation on a CUDA device: the twin of engine.cpp. What a step launches is recorded once as a graph and replayed; nothing in it waits for
// the host. What the host has to decide (more room, a sentence for a structure that is refused) it decides after the results.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "device_memory.hpp"
#include "heads.hpp"
#include "kernels/device.hpp"
#include "kernels/neighbors.hpp"
#include "tables.hpp"
#include "workspace.hpp"

namespace mfmd {

int cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());  // no driver, or no device: that is an answer, not an error to keep
  return 0;
}

namespace cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(std::string("the CUDA device has a problem with ") + what + ": " + cudaGetErrorString(status));
}

int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "its number");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "its properties");
  return count;
}

namespace {

constexpr int kOneBin = 512;        // a single system of up to so many atoms is one bin
constexpr double kDensity = 0.12;   // atoms an Å³ for which a row has room at first

// Makes a device current, and the one before again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "its number");
    if (device != before_) check(cudaSetDevice(device), "its number");
  }
  ~OnDevice() { static_cast<void>(cudaSetDevice(before_)); }

 private:
  int before_ = 0;
};

// The weights on one device: copies of all arrays in one block, each at an aligned place.
template <class T> class DeviceWeights {
 public:
  explicit DeviceWeights(const Weights<T>& host) {
    std::size_t bytes = 0;
    place(host, [&](const void*, std::size_t size) -> void* { bytes += aligned(size); return nullptr; });
    memory_.resize(bytes);
    std::size_t next = 0;
    place(host, [&](const void* from, std::size_t size) -> void* {
      unsigned char* to = memory_.get() + next;
      next += aligned(size);
      check(cudaMemcpy(to, from, size, cudaMemcpyHostToDevice), "a copy of the weights");
      return to;
    });
  }
  const Weights<T>& get() const { return weights_; }

  // One copy of a model's weights for all workspaces of a device.
  static std::shared_ptr<const DeviceWeights> of(const std::shared_ptr<const Model>& model, int device) {
    static std::mutex mutex;
    static std::map<std::pair<const Model*, int>, std::weak_ptr<const DeviceWeights>> known;
    std::lock_guard<std::mutex> lock(mutex);
    auto& slot = known[{model.get(), device}];
    auto weights = slot.lock();
    if (!weights) slot = weights = std::make_shared<const DeviceWeights>(model->weights<T>());
    return weights;
  }

 private:
  static std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

  // Calls copy(array, bytes) for every array and keeps the address it returns.
  template <class Copy> void place(const Weights<T>& host, const Copy& copy) {
    weights_ = host;
    layers_.assign(host.layers, host.layers + host.n_layers);
    const auto of = [&](auto*& array, std::size_t size) {
      if (array) array = static_cast<std::remove_reference_t<decltype(array)>>(copy(array, size * sizeof *array));
    };
    const auto dense = [&](Dense<T>& d) {
      const std::size_t size = static_cast<std::size_t>(d.in) * d.out;
      of(d.w, size), of(d.wt, size), of(d.b, static_cast<std::size_t>(d.out));
    };
    const auto norm = [&](Norm<T>& n, int size) { of(n.weight, static_cast<std::size_t>(size)), of(n.bias, static_cast<std::size_t>(size)); };
    Weights<T>& w = weights_;
    const std::size_t F = static_cast<std::size_t>(w.F), slots = static_cast<std::size_t>(w.slots), table = F * w.knots * 3 * w.R;
    w.means = w.betas = nullptr;  // the device has tables alone
    w.embedding_radial = {};
    of(w.pair, slots * slots * F), of(w.self_embedding, slots * F), of(w.embedding_table, table);
    norm(w.embedding_norm, w.F), norm(w.readout_norm, w.R * w.F);
    dense(w.gate[0]), dense(w.gate[1]), dense(w.readout);
    for (int part = 0; part < w.R; ++part) dense(w.embedding_mix[part]);
    for (LayerWeights<T>& layer : layers_) {
      for (Dense<T>& d : layer.radial) d = {};
      of(layer.self, w.R * F), of(layer.table, table);
      for (int part = 0; part < w.R; ++part) dense(layer.mix_in[part]), dense(layer.mix_out[part]);
    }
    w.layers = layers_.data();  // read by the host
    heads_.assign(host.heads, host.heads + host.n_heads);
    for (HeadWeights<T>& head : heads_) dense(head.hidden), dense(head.out), of(head.linear, slots * F), of(head.e0, slots);
    w.heads = heads_.data();
    of(w.heads, heads_.size());
  }

  Weights<T> weights_;
  std::vector<LayerWeights<T>> layers_;
  std::vector<HeadWeights<T>> heads_;
  DeviceMemory<unsigned char> memory_;
};

// Bins of one system. Where `one` is set, all its atoms are in one bin, and images are looked for in all cells within reach.
Grid grid_of(const Structure& s, int begin, double reach, bool one) {
  const Lattice l = lattice(s.cell, s.periodic);
  Grid g{};
  g.begin = begin, g.end = begin + s.atoms;
  for (int k = 0; k < 3; ++k) {
    if (l.periodic[k] && reach > 100.0 * l.height[k])
      throw InputError("the cell is flat: along periodic direction " + std::to_string(k) + " it is less than a hundredth of the cutoff high");
    g.periodic[k] = l.periodic[k];
    const double most = one ? 1.0 : l.periodic[k] ? std::floor(l.height[k] / reach) : std::cbrt(s.atoms);
    g.bins[k] = static_cast<int>(std::min(1024.0, std::max(1.0, most)));
  }
  while (static_cast<double>(g.bins[0]) * g.bins[1] * g.bins[2] > 8.0 + s.atoms) {  // a sparse box needs no more bins than atoms
    int* largest = std::max_element(g.bins, g.bins + 3);
    *largest = (*largest + 1) / 2;
  }
  for (int k = 0; k < 3; ++k) {
    if (!l.periodic[k]) {
      if (g.bins[k] < 3) g.bins[k] = 1;  // with two, the slices on either side would be the same bin
      g.span[k] = g.bins[k] == 1 ? 0 : 1;
      g.width[k] = reach * (1 + 1e-9) / l.height[k];
    } else {
      g.span[k] = 1 + static_cast<int>(reach * g.bins[k] / l.height[k] * (1 + 1e-12));
      g.width[k] = 1.0 / g.bins[k];
    }
  }
  std::copy_n(l.cell, 9, g.cell);
  std::copy_n(l.inverse, 9, g.inverse);
  return g;
}

int rounded(double room) { return (static_cast<int>(room) + 7) / 8 * 8; }

template <class T> class Evaluation final : public Workspace::Data {
 public:
  Evaluation(std::shared_ptr<const Model> model, const Options& options)
      : model_(std::move(model)), options_(options), shared_(DeviceWeights<T>::of(model_, options.cuda)), w_(shared_->get()) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    const Weights<T>& host = model_->template weights<T>();
    for (int h = 0; h < host.n_heads; ++h)
      if (!host.heads[h].linear) widest_ = std::max(widest_, host.heads[h].hidden.out);
    const auto layers = static_cast<std::size_t>(w_.n_layers);
    x_ = std::vector<DeviceMemory<T>>(layers + 1);
    for (auto* buffers : {&y_, &m_, &dx_}) *buffers = std::vector<DeviceMemory<T>>(layers);
  }
  ~Evaluation() override {
    if (graph_) static_cast<void>(cudaGraphExecDestroy(graph_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  std::int64_t rebuilds() const override { return rebuilds_; }
  std::size_t ghost_width() const override { return 0; }
  const std::map<std::string, double>& stage_times() const override { return times_; }

  const std::vector<Result>& evaluate(const Structure* structures, int count, const Request& request) override {
    const OnDevice here(options_.cuda);
    heads_ = heads_of(*model_, request.terms);
    for (int k = 0; k < count; ++k) {
      if (structures[k].atoms < 0) throw InputError("a structure cannot have fewer than no atoms");
      if (structures[k].pairs || structures[k].ghosts) throw InputError("on a CUDA device the engine makes the neighbour list itself; give a structure without the host's pairs and ghosts");
      check_elements(*model_, heads_, structures[k]);
    }
    bool stale = describe(structures, count) || !listed_;
    listed_ = false;  // stays so where this throws
    if (atoms_ > 0)
      for (;; stale = true) {
        make_room(request);
        give(structures, count, stale);
        step(request);
        const Verdict& verdict = *verdict_.get();
        if (verdict.refused) refuse(structures, count);
        if (!verdict.crowded[0] && !verdict.crowded[1]) break;
        reach_capacity_ = std::max(reach_capacity_, rounded(1.1 * verdict.crowded[0]));
        capacity_ = std::max(capacity_, rounded(1.1 * verdict.crowded[1]));
      }
    rebuilds_ += atoms_ > 0 && verdict_.get()->stale;
    listed_ = true;
    results_.assign(static_cast<std::size_t>(count), Result());
    for (int k = 0, begin = 0; k < count; begin += structures[k++].atoms) collect(structures[k], k, begin, request, results_[static_cast<std::size_t>(k)]);
    return results_;
  }

 private:
  // Elements, sizes and cells of the structures; whether a list made for those before is of no use.
  bool describe(const Structure* structures, int count) {
    std::vector<int> kind, system;
    std::vector<Grid> grids;
    const auto& elements = model_->elements();
    const double reach = w_.cutoff + options_.skin;
    for (int k = 0; k < count; ++k) {
      grids.push_back(grid_of(structures[k], static_cast<int>(kind.size()), reach, count > 1 || structures[k].atoms <= kOneBin));
      system.insert(system.end(), static_cast<std::size_t>(structures[k].atoms), k);
      for (int i = 0; i < structures[k].atoms; ++i)
        kind.push_back(static_cast<int>(std::lower_bound(elements.begin(), elements.end(), structures[k].numbers[i]) - elements.begin()));
      int room = rounded(kDensity * 4.0 / 3.0 * 3.14159265358979323846 * reach * reach * reach);
      const bool* periodic = structures[k].periodic;
      if (!periodic[0] && !periodic[1] && !periodic[2]) room = std::min(room, rounded(structures[k].atoms));
      reach_capacity_ = std::max(reach_capacity_, room);
    }
    capacity_ = std::max(capacity_, rounded(std::min(1.0, 1.2 * std::pow(w_.cutoff / reach, 3)) * reach_capacity_));
    atoms_ = static_cast<int>(kind.size());
    bins_ = count == 1 && atoms_ > kOneBin ? grids[0].bins[0] * grids[0].bins[1] * grids[0].bins[2] : 0;
    const bool same_grids = grids.size() == grids_.size() && std::memcmp(grids.data(), grids_.data(), grids.size() * sizeof(Grid)) == 0;
    const bool same_atoms = kind == kinds_ && system == systems_;
    if (!same_atoms && atoms_ > 0) {
      const std::size_t bytes = kind.size() * sizeof(int);
      renew(kind_, kind.size()), renew(system_, system.size());
      check(cudaMemcpy(kind_.get(), kind.data(), bytes, cudaMemcpyHostToDevice), "a copy of the elements");
      check(cudaMemcpy(system_.get(), system.data(), bytes, cudaMemcpyHostToDevice), "a copy of the systems");
    }
    grids_ = std::move(grids), kinds_ = std::move(kind), systems_ = std::move(system);
    return !same_grids || !same_atoms;
  }

  template <class U> void renew(U& memory, std::size_t size) {
    if (memory.resize(size)) ++generation_;
  }

  void make_room(const Request& request) {
    const std::size_t n = static_cast<std::size_t>(atoms_), row = static_cast<std::size_t>(w_.C * w_.F), pairs = n * static_cast<std::size_t>(capacity_);
    const std::size_t slabs = static_cast<std::size_t>(w_.F / kSlab), reach = n * static_cast<std::size_t>(reach_capacity_), bins = static_cast<std::size_t>(bins_);
    renew(built_, 3 * n), renew(home_, n), renew(wrap_, 3 * n), renew(start_, bins + 1), renew(cursor_, bins), renew(order_, n), renew(row_of_, n), renew(slot_, n);
    renew(found_, reach), renew(reached_, reach), renew(reached_count_, n), renew(entries_, pairs), renew(count_, n), renew(half_, n), renew(j_, pairs);
    renew(vectors_, 3 * pairs), renew(distances_, pairs), renew(u_, 3 * pairs), renew(basis_, kMaxComponents * pairs), renew(knot_, pairs), renew(hermite_, kHermite * pairs);
    renew(raw_, n * row), renew(mixed_, n * row), renew(kept_, n * kept_gates(w_));
    for (auto* buffers : {&x_, &y_, &m_, &dx_})
      for (auto& buffer : *buffers) renew(buffer, n * row);
    if (reverse(request)) {
      renew(ax_, n * row), renew(am_, n * row), renew(ay_, n * row), renew(slope_, slabs * pairs), renew(turn_, 3 * slabs * pairs);
      renew(gradient_, 3 * pairs), renew(atom_virials_, 9 * n);
    }
    renew(energies_, heads_.used.size() * n);
    if (request.error_bars) renew(features_, n * static_cast<std::size_t>(w_.F));
    const std::size_t given = 3 * n * sizeof(double) + grids_.size() * sizeof(Grid) + heads_.used.size() * sizeof(Seed<T>);
    const std::size_t found = 3 * n + (heads_.used.size() + 9) * grids_.size();
    renew(given_, given), renew(given_host_, given), renew(result_, found), renew(result_host_, found);
    renew(verdict_device_, 1), renew(verdict_given_, 1), renew(verdict_, 1);
  }

  // What changes from step to step, in one block: positions, grids, seeds.
  template <class U> U* part(unsigned char* block, std::size_t offset) const { return reinterpret_cast<U*>(block + offset); }
  std::size_t grids_at() const { return 3 * static_cast<std::size_t>(atoms_) * sizeof(double); }
  std::size_t seeds_at() const { return grids_at() + grids_.size() * sizeof(Grid); }

  void give(const Structure* structures, int count, bool stale) {
    unsigned char* block = given_host_.get();
    double* positions = part<double>(block, 0);
    for (int k = 0; k < count; ++k) positions = std::copy_n(structures[k].positions, 3 * static_cast<std::size_t>(structures[k].atoms), positions);
    std::copy(grids_.begin(), grids_.end(), part<Grid>(block, grids_at()));
    Seed<T>* seed = part<Seed<T>>(block, seeds_at());
    for (std::size_t q = 0; q < heads_.used.size(); ++q)
      seed[q] = {heads_.used[q].head, static_cast<T>(heads_.used[q].weight), energies_.get() + q * static_cast<std::size_t>(atoms_)};
    *verdict_given_.get() = {stale, {0, 0}, 0};
  }

  static bool reverse(const Request& request) { return request.forces || request.virial || request.atom_virials; }

  // Replays the graph of such a step; records it first where there is none.
  void step(const Request& request) {
    const std::vector<std::int64_t> key = {generation_, atoms_, static_cast<std::int64_t>(grids_.size()), bins_, reach_capacity_, capacity_,
                                           static_cast<std::int64_t>(heads_.used.size()), reverse(request), request.error_bars};
    if (!graph_ || key != recorded_) {
      if (graph_) check(cudaGraphExecDestroy(graph_), "a graph");
      graph_ = nullptr;
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "the recording of a graph");
      try {
        record(reverse(request), request.error_bars);
      } catch (...) {
        if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph) static_cast<void>(cudaGraphDestroy(graph));
        throw;
      }
      check(cudaStreamEndCapture(stream_, &graph), "the recording of a graph");
      const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
      static_cast<void>(cudaGraphDestroy(graph));
      check(status, "a graph");
      recorded_ = key;
    }
    check(cudaGraphLaunch(graph_, stream_), "a graph's launch");
    check(cudaStreamSynchronize(stream_), "an evaluation");
  }

  template <class U> void copy(U* to, const U* from, std::size_t size, cudaMemcpyKind kind) { check(cudaMemcpyAsync(to, from, size * sizeof(U), kind, stream_), "a copy"); }

  // The stages, forward then backward.
  void record(bool reverse, bool error_bars) {
    const int n = atoms_, L = w_.n_layers, heads = static_cast<int>(heads_.used.size());
    copy(given_.get(), given_host_.get(), seeds_at() + heads_.used.size() * sizeof(Seed<T>), cudaMemcpyHostToDevice);
    copy(verdict_device_.get(), verdict_given_.get(), 1, cudaMemcpyHostToDevice);
    List list{};
    list.atoms = n, list.systems = static_cast<int>(grids_.size()), list.bins = bins_, list.reach_capacity = reach_capacity_, list.capacity = capacity_;
    list.cutoff = w_.cutoff, list.skin = options_.skin, list.closest = kFirstKnot;
    list.positions = part<double>(given_.get(), 0), list.grids = part<Grid>(given_.get(), grids_at()), list.system = system_.get(), list.kind = kind_.get();
    list.built = built_.get(), list.home = home_.get(), list.wrap = wrap_.get(), list.start = start_.get(), list.cursor = cursor_.get();
    list.order = order_.get(), list.row_of = row_of_.get(), list.slot = slot_.get();
    list.found = found_.get(), list.reached = reached_.get(), list.reached_count = reached_count_.get(), list.entries = entries_.get();
    list.count = count_.get(), list.half = half_.get(), list.j = j_.get(), list.vectors = vectors_.get(), list.distances = distances_.get();
    list.verdict = verdict_device_.get();
    const Pairs<T> pairs{capacity_, count_.get(), half_.get(), j_.get(), u_.get(), basis_.get(), knot_.get(), hermite_.get()};
    const int* slot = slot_.get();
    T *raw = raw_.get(), *mixed = mixed_.get(), *kept = kept_.get(), *ax = reverse ? ax_.get() : nullptr, *am = am_.get(), *ay = ay_.get(), *slope = slope_.get();
    const auto rows = [](std::vector<DeviceMemory<T>>& buffers, int l) { return buffers[static_cast<std::size_t>(l)].get(); };

    neighbors(list, stream_);
    radial(list, kFirstKnot, w_.knots, u_.get(), basis_.get(), knot_.get(), hermite_.get(), stream_);
    embedding_gather(w_, pairs, slot, raw, n, stream_);
    embedding_mix(w_, raw, rows(x_, 0), mixed, kept, n, stream_);
    for (int l = 0; l < L; ++l) {
      mixing(w_, l, rows(x_, l), rows(y_, l), n, stream_);
      message(w_, l, pairs, rows(y_, l), rows(m_, l), n, stream_);
      product(w_, l, rows(x_, l), rows(y_, l), rows(m_, l), rows(dx_, l), rows(x_, l + 1), n, stream_);
    }
    readout(w_, slot, rows(x_, L), part<Seed<T>>(given_.get(), seeds_at()), heads, widest_, ax, error_bars ? features_.get() : nullptr, n, stream_);
    double* sums = result_.get() + 3 * static_cast<std::size_t>(n);
    sum(list, list.row_of, energies_.get(), heads, n, 1, sums, stream_);
    if (reverse) {
      for (int l = L; l--;) {
        product_reverse(w_, l, rows(y_, l), rows(m_, l), rows(dx_, l), ax, am, ay, n, stream_);
        message_reverse(w_, l, pairs, rows(y_, l), am, ay, slope, l == L - 1, n, stream_);
        mixing_reverse(w_, l, rows(x_, l), ay, ax, n, stream_);
      }
      embedding_mix_reverse(w_, raw, mixed, kept, ax, am, n, stream_);
      embedding_gather_reverse(w_, pairs, slot, am, slope, turn_.get(), L == 0, n, stream_);
      cuda::collect(list, w_.F / kSlab, slope, turn_.get(), gradient_.get(), result_.get(), atom_virials_.get(), stream_);
      sum(list, nullptr, atom_virials_.get(), 9, 1, 9, sums + heads_.used.size() * grids_.size(), stream_);
    }
    copy(result_host_.get(), result_.get(), 3 * static_cast<std::size_t>(n) + (heads_.used.size() + (reverse ? 9u : 0u)) * grids_.size(), cudaMemcpyDeviceToHost);
    copy(verdict_.get(), verdict_device_.get(), 1, cudaMemcpyDeviceToHost);
  }

  // The CPU's list says in a sentence what is wrong with a structure.
  [[noreturn]] void refuse(const Structure* structures, int count) {
    Pool pool(1);
    for (int k = 0; k < count; ++k) SkinList(w_.cutoff, 0.0).update(structures[k], kFirstKnot, pool);
    throw InputError("the CUDA device refuses a structure in which the CPU finds no fault; please report it");
  }

  template <class U> std::vector<U> fetch(const DeviceMemory<U>& memory, std::size_t begin, std::size_t size) const {
    std::vector<U> out(size);
    check(cudaMemcpy(out.data(), memory.get() + begin, size * sizeof(U), cudaMemcpyDeviceToHost), "a copy of results");
    return out;
  }

  void collect(const Structure& s, int system, int begin, const Request& request, Result& result) {
    const std::size_t n = static_cast<std::size_t>(s.atoms), all = static_cast<std::size_t>(atoms_), first = static_cast<std::size_t>(begin), systems = grids_.size();
    const double* sums = result_host_.get() + 3 * all + static_cast<std::size_t>(system);
    const auto sum_of = [&](std::size_t q) { return atoms_ > 0 ? sums[q * systems] : 0.0; };
    std::vector<double> head_sums;
    for (std::size_t q = 0; q < heads_.used.size(); ++q) head_sums.push_back(sum_of(q));
    add_up(*model_, heads_, head_sums.data(), result);
    if (reverse(request)) {
      if (n) result.forces.assign(result_host_.get() + 3 * first, result_host_.get() + 3 * (first + n));
      for (std::size_t k = 0; k < 9; ++k) result.virial[k] = sum_of(heads_.used.size() + k);
      if (request.atom_virials && n) result.atom_virials = fetch(atom_virials_, 9 * first, 9 * n);
      check_forces(result);
    }
    if (!n || !(request.atom_energies || request.error_bars)) {
      if (request.error_bars) result.term_errors.assign(heads_.terms.size(), 0.0);
      return;
    }
    const std::vector<int> row_of = fetch(row_of_, first, n);
    if (request.atom_energies) add_up_atoms(*model_, heads_, fetch(energies_, 0, heads_.used.size() * all).data(), row_of.data(), atoms_, s.atoms, result);
    if (!request.error_bars) return;
    const std::vector<T> features = fetch(features_, 0, all * static_cast<std::size_t>(w_.F));
    for (const Term& term : heads_.terms)
      result.term_errors.push_back(model_->levels()[static_cast<std::size_t>(term.head)].error_bars
                                       ? error_of(*model_, term.head, s, features.data(), row_of.data(), w_.F) : NAN);
  }

  const std::shared_ptr<const Model> model_;
  const Options options_;
  const std::shared_ptr<const DeviceWeights<T>> shared_;
  const Weights<T>& w_;
  int widest_ = 0;
  cudaStream_t stream_ = nullptr;

  Heads heads_;
  int atoms_ = 0, bins_ = 0, reach_capacity_ = 0, capacity_ = 0;
  std::vector<int> kinds_, systems_;
  std::vector<Grid> grids_;
  bool listed_ = false;
  std::int64_t rebuilds_ = 0;

  DeviceMemory<double> built_, vectors_, distances_, gradient_, atom_virials_, energies_, result_;
  DeviceMemory<int> kind_, system_, home_, wrap_, start_, cursor_, order_, row_of_, slot_, reached_count_, count_, half_, j_, knot_;
  DeviceMemory<Entry> found_, reached_, entries_;
  DeviceMemory<T> u_, basis_, hermite_, raw_, mixed_, kept_, ax_, am_, ay_, slope_, turn_, features_;
  std::vector<DeviceMemory<T>> x_, y_, m_, dx_;
  DeviceMemory<unsigned char> given_;
  PinnedMemory<unsigned char> given_host_;
  PinnedMemory<double> result_host_;
  DeviceMemory<Verdict> verdict_device_;
  PinnedMemory<Verdict> verdict_given_, verdict_;

  std::int64_t generation_ = 0;
  std::vector<std::int64_t> recorded_;  // what the graph was recorded for
  cudaGraphExec_t graph_ = nullptr;
  std::vector<Result> results_;
  std::map<std::string, double> times_;
};

}  // namespace

std::unique_ptr<Workspace::Data> workspace(std::shared_ptr<const Model> model, const Options& options) {
  if (options.cuda >= cuda_devices())
    throw InputError("there is no CUDA device number " + std::to_string(options.cuda) + "; this machine has " + std::to_string(cuda_devices()));
  if (!options.tables) throw InputError("a CUDA device evaluates radial functions from tables; exactly, the CPU does");
  const OnDevice here(options.cuda);
  if (options.precision == Precision::single_) return std::make_unique<Evaluation<float>>(std::move(model), options);
  return std::make_unique<Evaluation<double>>(std::move(model), options);
}

}  // namespace cuda
}  // namespace mfmd
