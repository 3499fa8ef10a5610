// The weights: validated against the header's sizes, derived once in double, packed for the kernels.
#include "mfmd.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <new>
#include <optional>
#include <set>

#include "archive.hpp"
#include "domain.hpp"
#include "kernels/stages.hpp"
#include "kernels/tensor.hpp"
#include "packing.hpp"
#include "states.hpp"
#include "tables.hpp"

namespace mfmd {

namespace {

constexpr int kFormat = 4;  // of the model file; a file with a higher number is refused

using Values = std::vector<double>;

// Weights of one precision, in one aligned block that only grows.
template <class T> struct Packed {
  Weights<T> weights;
  std::vector<LayerWeights<T>> layers;
  std::vector<HeadWeights<T>> heads;
  std::vector<std::vector<double>> e0;
  std::vector<double> nuclei;
  std::vector<T> factors;
  std::vector<Buffer<T>> blocks;

  static T number(double value) {
    const T out = static_cast<T>(value);
    if (!std::isfinite(out)) throw InputError("a weight of the model is too large for " + std::string(sizeof(T) == 4 ? "single precision; use double" : "any precision"));
    return out;
  }
  const T* keep(const Values& v) {
    blocks.emplace_back();
    T* p = blocks.back().resize(v.size());
    for (std::size_t k = 0; k < v.size(); ++k) p[k] = number(v[k]);
    return p;
  }
  // From torch's [out][in]; rows and columns beyond are padded with zeros.
  Dense<T> dense(const Values& w, const Values* b, int in, int out, int padded_in, int padded_out) {
    Values forward(static_cast<std::size_t>(padded_in) * padded_out, 0.0), back = forward, bias(static_cast<std::size_t>(padded_out), 0.0);
    for (int o = 0; o < out; ++o)
      for (int i = 0; i < in; ++i)
        forward[static_cast<std::size_t>(i) * padded_out + o] = back[static_cast<std::size_t>(o) * padded_in + i] =
            w[static_cast<std::size_t>(o) * in + i];
    if (b) std::copy(b->begin(), b->end(), bias.begin());
    Dense<T> d;
    d.in = padded_in, d.out = padded_out, d.w = keep(forward), d.wt = keep(back), d.b = b ? keep(bias) : nullptr;
    return d;
  }
  // From [intervals][coefficients][R][F] to [F / 16][intervals][coefficients][R][16].
  const T* table(const Values& v, int F) {
    const std::size_t width = static_cast<std::size_t>(F), rows = v.size() / width;
    Values slabs(v.size());
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t f = 0; f < width; ++f) slabs[(f / kSlab * rows + row) * kSlab + f % kSlab] = v[row * width + f];
    return keep(slabs);
  }
  Dense<T> dense(const Values& w, const Values* b, int in, int out) { return dense(w, b, in, out, in, out); }
};

// [[charge, multiplicity], …] of a header.
std::vector<State> states_of(const Json& list, const std::string& where) {
  std::vector<State> out;
  for (const Json& pair : list.array) {
    for (const Json& value : pair.array)
      if (value.kind != Json::number_ || value.number != std::floor(value.number) || std::abs(value.number) > 10000) throw ModelFileError(where + " lists a state whose charge or multiplicity is no whole number");
    if (pair.array.size() != 2 || pair.array[1].number < 1) throw ModelFileError(where + " lists a state that is not a charge and a multiplicity");
    out.push_back({static_cast<int>(pair.array[0].number), static_cast<int>(pair.array[1].number)});
  }
  if (out.empty()) throw ModelFileError(where + " lists no state that it was trained on");
  return out;
}

}  // namespace

struct Model::Data {
  std::string origin, bytes, hash, metadata;
  std::vector<Level> levels;
  std::vector<int> elements;
  std::vector<State> states;  // the slot of an element in a state is place of the state · elements + place of the element
  double cutoff = 0.0;
  int F = 0, K = 0, rank = 0, layers = 0;
  std::map<std::string, Tensor> tensors;
  RadialBasis::Kind kind = RadialBasis::expnorm;
  bool self_pair = true, own_message = false, readout_silu = true;
  double repulsion = 0.0;       // cutoff of the nuclei's, Å; 0: there is none
  double charge_factor = 0.0;
  bool state_embedding = false;
  std::vector<std::vector<int>> hidden;  // per head, widths of hidden layers; none of a linear one
  std::vector<ErrorBars> error_bars;
  std::optional<TrainedOn> domain;
  int intervals = 64;           // of the tables, at least
  std::vector<Values> tables;   // of the embedding and of each layer
  mutable std::mutex packing;
  mutable std::vector<std::pair<std::vector<State>, std::unique_ptr<Packed<float>>>> packed_single;
  mutable std::vector<std::pair<std::vector<State>, std::unique_ptr<Packed<double>>>> packed_double;

  bool reading = true;                  // the file
  mutable std::set<std::string> asked;  // tensors, while it is read

  const Values& tensor(const std::string& name, std::vector<std::int64_t> shape) const {
    const auto hit = tensors.find(name);
    if (hit == tensors.end()) throw ModelFileError(origin + ": tensor " + name + " is missing");
    if (hit->second.shape != shape) {
      const auto text = [](const std::vector<std::int64_t>& s) {
        std::string t = "(";
        for (std::size_t k = 0; k < s.size(); ++k) t += (k ? ", " : "") + std::to_string(s[k]);
        return t + ")";
      };
      throw ModelFileError(origin + ": tensor " + name + " has shape " + text(hit->second.shape) + " where its header asks for " + text(shape));
    }
    if (reading) asked.insert(name);
    return hit->second.values;
  }
  RadialBasis basis() const {
    if (kind == RadialBasis::smooth_bessel) return {kind, K, cutoff, nullptr, nullptr};
    return {kind, K, cutoff, tensor("backbone.radial.means", {K}).data(), tensor("backbone.radial.betas", {K}).data()};
  }
  void tabulate();
  template <class T> void pack(const std::vector<State>& wanted, Packed<T>& p) const;
  // Of a list of states, packed when it is first asked for.
  template <class T> const Weights<T>& packed(std::vector<std::pair<std::vector<State>, std::unique_ptr<Packed<T>>>>& known, const std::vector<State>& wanted) const {
    const std::lock_guard<std::mutex> lock(packing);
    for (const auto& [of, one] : known)
      if (of == wanted) return one->weights;
    auto one = std::make_unique<Packed<T>>();
    pack(wanted, *one);
    known.emplace_back(wanted, std::move(one));
    return known.back().second->weights;
  }
};

// In as many intervals as the functions need, whose error goes down by the fifth power: some 75 for the usual basis at 5 Å, 680 KiB a layer at 128 channels.
void Model::Data::tabulate() {
  const int RF = (rank + 1) * F;
  const RadialBasis basis = this->basis();
  const std::string e = "backbone.embedding.radial";
  std::vector<std::vector<Affine>> maps = {{{&tensor(e + ".weight", {RF, K}), &tensor(e + ".bias", {RF})}}};
  const int width[4] = {K, F, 2 * F, RF};
  for (int l = 0; l < layers; ++l) {
    maps.emplace_back();
    for (int k = 0; k < 3; ++k) {
      const std::string name = "backbone.layers." + std::to_string(l) + ".radial." + std::to_string(k);
      maps.back().push_back({&tensor(name + ".weight", {width[k + 1], width[k]}), &tensor(name + ".bias", {width[k + 1]})});
    }
  }
  for (;;) {
    tables.clear();
    double error = 0.0;
    for (std::size_t k = 0; k < maps.size(); ++k) {
      tables.push_back(radial_table(Intervals(intervals, cutoff), basis, maps[k], k > 0));
      for (const double value : tables.back())
        if (!std::isfinite(value)) throw ModelFileError(origin + ": its radial functions are not finite");
      error = std::max(error, table_error(tables.back(), Intervals(intervals, cutoff), basis, maps[k], k > 0));
    }
    if (error < kTableError) return;
    const double more = std::ceil(intervals * std::max(1.1, std::pow(error / kTableError, 0.2)));
    if (!(more <= 2048.0)) throw ModelFileError(origin + ": its radial functions are too steep to tabulate");
    intervals = static_cast<int>(more);
  }
}

template <class T> void Model::Data::pack(const std::vector<State>& wanted, Packed<T>& p) const {
  Weights<T>& w = p.weights;
  const int R = rank + 1, RF = R * F, slots = static_cast<int>(wanted.size() * elements.size());
  // Calls body(terms of the state, atomic number) for every slot.
  const auto each_slot = [&](const auto& body) {
    for (const State& state : wanted)
      for (const int z : elements) body(state, z);
  };
  w.F = F, w.K = K, w.rank = rank, w.R = R, w.C = R * R, w.slots = slots, w.cutoff = cutoff, w.intervals = intervals;
  w.basis = basis();
  w.own_message = own_message, w.readout_silu = readout_silu, w.repulsion = repulsion;
  each_slot([&](const State& state, int z) {
    p.nuclei.push_back(z);
    if (charge_factor != 0.0) p.factors.push_back(p.number(1.0 + charge_factor * state.charge));
  });
  w.charge = p.nuclei.data();
  w.factor = charge_factor != 0.0 ? p.factors.data() : nullptr;

  const std::string e = "backbone.embedding.";
  const Values& table = tensor(e + "elements.weight", {119, F});
  const Values &pair_w = tensor(e + "pair.weight", {F, 2 * F}), &pair_b = tensor(e + "pair.bias", {F});
  const Values &rad_w = tensor(e + "radial.weight", {RF, K}), &rad_b = tensor(e + "radial.bias", {RF});
  // The self pair sees the basis at d = 0, where the cutoff function is 1.
  Values at_zero(static_cast<std::size_t>(K));
  {
    std::vector<Jet> there(at_zero.size());
    evaluate(w.basis, Jet{}, there.data());
    for (std::size_t k = 0; k < at_zero.size(); ++k) at_zero[k] = there[k].v;
  }
  const auto affine = [](const Values& m, const Values& b, const Values& x) {
    Values y(b);
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += m[o * x.size() + i] * x[i];
    return y;
  };
  const Values radial_zero = affine(rad_w, rad_b, at_zero);
  const Values* of_states = state_embedding ? &tensor(e + "states", {3, 119, F}) : nullptr;
  Values first, second, self;
  for (Values* values : {&first, &second, &self}) values->reserve(static_cast<std::size_t>(slots) * static_cast<std::size_t>(F));
  each_slot([&](const State& state, int z) {
    const std::size_t width = static_cast<std::size_t>(F);
    const double* row = table.data() + static_cast<std::size_t>(z) * width;
    Values added(width, 0.0);  // to the element's row by its state, whose self pair is there in every backbone
    for (std::size_t k = 0; of_states && k < 3; ++k)
      for (std::size_t f = 0; f < width; ++f) added[f] += state_terms(state).value[k] * (*of_states)[(k * 119 + static_cast<std::size_t>(z)) * width + f];
    for (std::size_t f = 0; f < width; ++f) {
      double own = pair_b[f], other = 0.0, more_own = 0.0, more_other = 0.0;
      const double* weight = pair_w.data() + 2 * f * width;
      for (std::size_t k = 0; k < width; ++k) {
        own += weight[k] * row[k], other += weight[width + k] * row[k];
        more_own += weight[k] * added[k], more_other += weight[width + k] * added[k];
      }
      first.push_back(own + more_own), second.push_back(other + more_other);
      self.push_back(tensor::kSqrt3 * ((self_pair ? own + other : 0.0) + more_own + more_other) * radial_zero[f]);
    }
  });
  w.first = p.keep(first), w.second = p.keep(second);
  w.self_embedding = p.keep(self);
  w.embedding_radial = p.dense(rad_w, &rad_b, K, RF);
  w.embedding_table = p.table(tables[0], F);
  w.embedding_norm = {p.keep(tensor(e + "norm.weight", {F})), p.keep(tensor(e + "norm.bias", {F}))};
  w.gate[0] = p.dense(tensor(e + "gate.0.weight", {2 * F, F}), &tensor(e + "gate.0.bias", {2 * F}), F, 2 * F);
  w.gate[1] = p.dense(tensor(e + "gate.1.weight", {RF, 2 * F}), &tensor(e + "gate.1.bias", {RF}), 2 * F, RF);
  const auto mixers = [&](const std::string& name, Dense<T>* out) {
    const Values& all = tensor(name, {R, F, F});
    for (int part = 0; part < R; ++part) {
      const auto from = all.begin() + static_cast<long>(part) * F * F;
      out[part] = p.dense(Values(from, from + static_cast<long>(F) * F), nullptr, F, F);
    }
  };
  mixers(e + "mixing", w.embedding_mix);

  for (int l = 0; l < layers; ++l) {
    const std::string name = "backbone.layers." + std::to_string(l) + ".";
    LayerWeights<T> layer;
    const int width[4] = {K, F, 2 * F, RF};
    Values x = at_zero;
    for (int k = 0; k < 3; ++k) {
      const std::string r = name + "radial." + std::to_string(k);
      const Values &m = tensor(r + ".weight", {width[k + 1], width[k]}), &b = tensor(r + ".bias", {width[k + 1]});
      layer.radial[k] = p.dense(m, &b, width[k], width[k + 1]);
      x = affine(m, b, x);
      for (double& v : x) v /= 1.0 + std::exp(-v);
    }
    if (!self_pair) x.assign(x.size(), 0.0);
    layer.self = p.keep(x);
    layer.table = p.table(tables[static_cast<std::size_t>(l) + 1], F);
    mixers(name + "mixing_in", layer.mix_in);
    mixers(name + "mixing_out", layer.mix_out);
    p.layers.push_back(layer);
  }
  w.n_layers = layers;
  w.layers = p.layers.data();
  w.readout_norm = {p.keep(tensor("backbone.readout.norm.weight", {RF})), p.keep(tensor("backbone.readout.norm.bias", {RF}))};
  w.readout = p.dense(tensor("backbone.readout.linear.weight", {F, RF}), &tensor("backbone.readout.linear.bias", {F}), RF, F);

  for (std::size_t h = 0; h < levels.size(); ++h) {
    const std::string name = "heads." + levels[h].name + ".";
    HeadWeights<T> head;
    if (levels[h].kind == "linear") {
      const Values& all = tensor(name + "weight", {119, F});
      Values own;
      each_slot([&](const State&, int z) { own.insert(own.end(), all.begin() + static_cast<long>(z) * F, all.begin() + (static_cast<long>(z) + 1) * F); });
      head.linear = p.keep(own);
    } else {
      // Names of the layers, the last one's behind those of the hidden ones.
      const auto perceptron = [&](const std::vector<std::string>& names) {
        Perceptron<T> q;
        int in = F, padded_in = F;
        for (const int H : hidden[h]) {
          const int padded = (H + 15) / 16 * 16;
          const std::string& layer = names[static_cast<std::size_t>(q.layers)];
          q.hidden[q.layers++] = p.dense(tensor(layer + ".weight", {H, in}), &tensor(layer + ".bias", {H}), in, H, padded_in, padded);
          in = H, padded_in = padded;
        }
        q.out = p.dense(tensor(names.back() + ".weight", {1, in}), &tensor(names.back() + ".bias", {1}), in, 1, padded_in, 1);
        return q;
      };
      const auto numbered = [&](const std::string& of) {
        std::vector<std::string> names;
        for (std::size_t k = 0; k <= hidden[h].size(); ++k) names.push_back(name + of + "." + std::to_string(k));
        return names;
      };
      if (levels[h].kind == "mlp") head.value = perceptron({name + "hidden", name + "out"});
      else head.value = perceptron(numbered("value")), head.gate = perceptron(numbered("gate"));
    }
    head.repels = levels[h].relative_to < 0;
    head.scale = tensor(name + "scale", {})[0];
    const Values& e0 = tensor(name + "e0", {119});
    p.e0.emplace_back();
    each_slot([&](const State&, int z) { p.e0.back().push_back(e0[static_cast<std::size_t>(z)]); });
    p.heads.push_back(head);
  }
  for (std::size_t h = 0; h < levels.size(); ++h) p.heads[h].e0 = p.e0[h].data();
  w.n_heads = static_cast<int>(p.heads.size());
  w.heads = p.heads.data();
}

Model::Model() : data_(new Data) {}
Model::~Model() = default;

template <> const Weights<float>& Model::weights<float>(const std::vector<State>& states) const { return data_->packed(data_->packed_single, states); }
template <> const Weights<double>& Model::weights<double>(const std::vector<State>& states) const { return data_->packed(data_->packed_double, states); }

std::shared_ptr<const Model> Model::load(const std::string& path) { return parse(read_entry(path, "/extra/mfmd.safetensors"), path); }

std::shared_ptr<const Model> Model::parse(std::string bytes, const std::string& origin) {
  // Files of one content are one model for as long as anyone has it.
  static std::mutex guard;
  static std::map<std::string, std::weak_ptr<const Model>> known;
  const std::string hash = mfmd::sha256(bytes);
  {
    const std::lock_guard<std::mutex> lock(guard);
    const auto hit = known.find(hash);
    if (hit != known.end())
      if (std::shared_ptr<const Model> model = hit->second.lock()) return model;
  }
  TensorFile file = read_tensors(bytes, origin);
  std::shared_ptr<Model> model(new Model);
  Data& d = *model->data_;
  d.origin = origin;
  const auto meta = file.metadata.find("mfmd");
  if (meta == file.metadata.end()) throw ModelFileError(origin + ": not a model of mfmd (no `mfmd` in its metadata)");
  d.metadata = meta->second;
  d.tensors = std::move(file.tensors);

  const Json json = Json::parse(d.metadata, origin);
  const int format = json.integer("format", 0, 1 << 30, origin);
  if (format > kFormat)
    throw ModelFileError(origin + ": written in model format " + std::to_string(format) + ", and this mfmd reads up to " +
                         std::to_string(kFormat) + "; install a newer mfmd");
  if (format < 1) throw ModelFileError(origin + ": model format " + std::to_string(format) + " never existed");
  const Json& size = json.get("backbone", Json::object_, origin);
  const auto known_alone = [&](const Json& of, const std::string& where, std::set<std::string> first, const std::set<std::string>& second, const std::set<std::string>& third) {
    for (const auto& [key, value] : of.object) {
      if (first.count(key) || (format > 1 && second.count(key)) || (format > 2 && third.count(key))) continue;
      throw ModelFileError(origin + ": " + where + " has a `" + key + "`, which this mfmd does not know in model format " + std::to_string(format) + "; install a newer one");
    }
  };
  known_alone(size, "`backbone`", {"kind", "channels", "layers", "cutoff", "rank", "radial_functions"}, {"radial_basis", "self_pair", "message", "readout_activation", "charge_factor", "zbl"}, {"state_embedding"});
  if (const std::string& kind = size.get("kind", Json::string_, origin).string; kind != "tensornet")
    throw ModelFileError(origin + ": its backbone is a " + kind + ", which this mfmd does not know; install a newer one");
  const Json& units = json.get("units", Json::object_, origin);
  if (units.get("energy", Json::string_, origin).string != "eV" || units.get("length", Json::string_, origin).string != "Å")
    throw ModelFileError(origin + ": its units are not eV and Å, which every model file has");
  d.F = size.integer("channels", 16, 256, origin);
  if (d.F % 16) throw ModelFileError(origin + ": `channels` is " + std::to_string(d.F) + "; a multiple of 16 is needed");
  d.layers = size.integer("layers", 0, 16, origin);
  d.rank = size.integer("rank", 0, 2, origin);
  d.K = size.integer("radial_functions", 1, kMaxRadial, origin);
  d.cutoff = size.get("cutoff", Json::number_, origin).number;
  if (!(d.cutoff > 0.5) || !(d.cutoff <= 20.0)) throw ModelFileError(origin + ": `cutoff` of " + std::to_string(d.cutoff) + " Å cannot be; it is from 0.5 to 20 Å");
  // Variants, which are not there where they are the first.
  const auto one_of = [&](const char* key, const std::string& first, const std::string& second) {
    const std::string is = size.object.count(key) ? size.get(key, Json::string_, origin).string : first;
    if (is != first && is != second) throw ModelFileError(origin + ": `" + key + "` is " + is + ", which this mfmd does not know; install a newer one");
    return is == second;
  };
  const auto said = [&](const char* key, bool otherwise) { return size.object.count(key) ? size.get(key, Json::bool_, origin).boolean : otherwise; };
  const auto number = [&](const char* key) { return size.object.count(key) ? size.get(key, Json::number_, origin).number : 0.0; };
  if (one_of("radial_basis", "expnorm", "smooth_bessel")) d.kind = RadialBasis::smooth_bessel;
  d.own_message = one_of("message", "neighbours", "own");
  d.self_pair = said("self_pair", true);
  d.readout_silu = said("readout_activation", true);
  d.charge_factor = number("charge_factor");
  d.state_embedding = said("state_embedding", false);
  d.repulsion = number("zbl");
  if (!(d.repulsion >= 0.0) || d.repulsion > d.cutoff)
    throw ModelFileError(origin + ": `zbl` is " + std::to_string(d.repulsion) + " Å, and it can be no more than the cutoff, " + std::to_string(d.cutoff) + " Å");
  d.states = {State()};
  for (const Json& entry : json.get("levels", Json::array_, origin).array) {
    Level level;
    level.name = entry.get("name", Json::string_, origin).string;
    known_alone(entry, "level " + level.name, {"name", "kind", "hidden", "members", "delta_of", "elements", "e0"}, {"constant"}, {"states", "of_states"});
    for (const Level& before : d.levels)
      if (before.name == level.name) throw ModelFileError(origin + ": it has two levels of the name " + level.name);
    level.kind = entry.get("kind", Json::string_, origin).string;
    if (level.kind != "mlp" && level.kind != "linear" && level.kind != "gated")
      throw ModelFileError(origin + ": level " + level.name + " has a head of kind " + level.kind + ", which this mfmd does not know; install a newer one");
    d.hidden.emplace_back();
    if (level.kind == "mlp") d.hidden.back() = {entry.integer("hidden", 1, kWidestHead * d.F, origin)};
    if (level.kind == "gated") {
      for (const Json& width : entry.get("hidden", Json::array_, origin).array) {
        if (width.kind != Json::number_ || width.number != std::floor(width.number) || width.number < 1 || width.number > d.F)
          throw ModelFileError(origin + ": level " + level.name + " has a hidden layer whose width is no whole number from 1 to " + std::to_string(d.F));
        d.hidden.back().push_back(static_cast<int>(width.number));
      }
      if (d.hidden.back().empty() || d.hidden.back().size() > kMaxHidden)
        throw ModelFileError(origin + ": level " + level.name + " has " + std::to_string(d.hidden.back().size()) + " hidden layers; this mfmd evaluates from 1 to " + std::to_string(kMaxHidden));
    }
    if (entry.object.count("constant")) level.constant = entry.get("constant", Json::number_, origin).number;
    const int members = entry.object.count("members") ? entry.integer("members", 1, 64, origin) : 1;
    if (const auto parent = entry.object.find("delta_of"); parent != entry.object.end() && parent->second.kind == Json::string_) {
      for (std::size_t k = 0; k < d.levels.size(); ++k)
        if (d.levels[k].name == parent->second.string) level.relative_to = static_cast<int>(k);
      if (level.relative_to < 0)
        throw ModelFileError(origin + ": level " + level.name + " is relative to " + parent->second.string + ", which is not listed before it");
    }
    for (const Json& z : entry.get("elements", Json::array_, origin).array) {
      if (z.kind != Json::number_ || z.number < 1 || z.number > 118 || z.number != std::floor(z.number)) throw ModelFileError(origin + ": level " + level.name + " lists an element that is none");
      level.elements.push_back(static_cast<int>(z.number));
    }
    std::sort(level.elements.begin(), level.elements.end());
    if (level.elements.empty() || std::adjacent_find(level.elements.begin(), level.elements.end()) != level.elements.end())
      throw ModelFileError(origin + ": level " + level.name + " lists no element, or one twice");
    if (entry.object.count("states")) level.states = states_of(entry.get("states", Json::array_, origin), origin + ": level " + level.name);
    if (entry.object.count("of_states")) {
      const auto& values = entry.get("of_states", Json::array_, origin).array;
      if (values.size() != 3 || std::any_of(values.begin(), values.end(), [](const Json& value) { return value.kind != Json::number_; }))
        throw ModelFileError(origin + ": level " + level.name + " has `of_states` that are not three energies");
      for (std::size_t k = 0; k < values.size(); ++k) level.of_states[k] = values[k].number;
    }
    for (const State& state : level.states) place_of(d.states, state);
    const std::string head = "heads." + level.name + ".";
    level.error_bars = (level.kind == "linear" || format > 3) && d.tensors.count(head + "factor");
    d.error_bars.emplace_back();
    if (members > 1 && level.kind != "mlp") throw ModelFileError(origin + ": level " + level.name + " has members, and a head of kind " + level.kind + " is no ensemble");
    if (members > 1) {
      const auto kinds = static_cast<std::int64_t>(level.elements.size());
      const int H = d.hidden.back().front();
      if (H % members) throw ModelFileError(origin + ": level " + level.name + " has a hidden layer that its members cannot share evenly");
      ErrorBars& bars = d.error_bars.back();
      bars.members = members;
      bars.hidden = d.tensor(head + "hidden.weight", {H, d.F}), bars.bias = d.tensor(head + "hidden.bias", {H});
      bars.out = d.tensor(head + "out.weight", {1, H}), bars.alone = d.tensor(head + "alone", {kinds, members});
      bars.scale = d.tensor(head + "scale", {})[0], bars.calibration = d.tensor(head + "calibration", {})[0];
      level.error_bars = true;
    } else if (level.error_bars) {
      const auto kinds = static_cast<std::int64_t>(level.elements.size()), columns = kinds * (d.F + 1);
      ErrorBars& bars = d.error_bars.back();
      bars.factor = d.tensor(head + "factor", {columns, columns}), bars.isolated = d.tensor(head + "isolated", {kinds, d.F});
      bars.noise = d.tensor(head + "noise", {})[0];
      bars.of_difference = format > 3 && level.relative_to >= 0 && d.levels[static_cast<std::size_t>(level.relative_to)].error_bars;
    }
    d.elements.insert(d.elements.end(), level.elements.begin(), level.elements.end());
    d.levels.push_back(level);
  }
  if (d.levels.empty()) throw ModelFileError(origin + ": the model has no level");
  std::sort(d.elements.begin(), d.elements.end());
  d.elements.erase(std::unique(d.elements.begin(), d.elements.end()), d.elements.end());
  if (json.object.count("domain")) {
    const int slots = static_cast<int>(d.elements.size());
    d.domain = trained_on(d.tensor("domain.nearest", {slots, slots}), d.tensor("domain.neighbors", {slots, 2}), d.tensor("domain.features", {slots, 2, d.F}), slots, d.F, d.cutoff, origin);
  }
  d.bytes = std::move(bytes);
  d.hash = hash;
  d.tabulate();
  try {
    model->weights<double>(d.states);  // finds every tensor now, not in the middle of a run
  } catch (const InputError& error) {
    throw ModelFileError(origin + ": " + error.what());
  }
  d.reading = false;
  for (const auto& [name, tensor] : d.tensors)
    if (name.rfind("backbone.", 0) == 0 && !d.asked.count(name)) throw ModelFileError(origin + ": tensor " + name + " has no place in what its header describes");
  const std::lock_guard<std::mutex> lock(guard);
  for (auto one = known.begin(); one != known.end();) one = one->second.expired() ? known.erase(one) : std::next(one);
  known[hash] = model;
  return model;
}

const std::vector<Level>& Model::levels() const { return data_->levels; }
const ErrorBars& Model::error_bars(int level) const { return data_->error_bars[static_cast<std::size_t>(level)]; }
const Domain* Model::domain() const { return data_->domain ? &data_->domain->view : nullptr; }
double Model::cutoff() const { return data_->cutoff; }
double Model::constant(int level) const {
  double sum = 0.0;
  for (int h = level; h >= 0; h = levels()[static_cast<std::size_t>(h)].relative_to) sum += levels()[static_cast<std::size_t>(h)].constant;
  return sum;
}
const std::string& Model::metadata() const { return data_->metadata; }
const std::string& Model::bytes() const { return data_->bytes; }
const std::string& Model::sha256() const { return data_->hash; }
const std::vector<int>& Model::elements() const { return data_->elements; }
const std::vector<State>& Model::states() const { return data_->states; }
double Model::of_state(int level, const State& state) const {
  double sum = 0.0;
  const StateTerms terms = state_terms(state);
  for (int h = level; h >= 0; h = levels()[static_cast<std::size_t>(h)].relative_to)
    for (std::size_t k = 0; k < 3; ++k) sum += terms.value[k] * levels()[static_cast<std::size_t>(h)].of_states[k];
  return sum;
}

int Model::level(const std::string& name) const {
  std::string known;
  for (std::size_t k = 0; k < data_->levels.size(); ++k) {
    if (data_->levels[k].name == name) return static_cast<int>(k);
    known += (k ? ", " : "") + data_->levels[k].name;
  }
  throw InputError(data_->origin + " has no head `" + name + "`; it has " + known);
}

}  // namespace mfmd
