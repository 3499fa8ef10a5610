// The TorchScript host: torch.classes.mfmd.Model, whose state is (format, sha256, the bytes of mfmd.safetensors).
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/custom_class.h>
#include <torch/script.h>

#include <mutex>
#include <tuple>

#include "../archive.hpp"
#include "../mfmd.hpp"

namespace {

// The stream that torch works on now. It is asked for by name, in torch's stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h): what is
// compiled here serves torch with CUDA and without, whatever its CUDA version.
void* current_cuda_stream(int device) {
  using Function = int32_t (*)(int32_t device, void** stream);
  static const auto ask = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  TORCH_CHECK(ask && ask(device, &stream) == 0, "mfmd: torch does not say which CUDA stream is the current one");
  return stream;
}

using Pickled = std::tuple<int64_t, std::string, torch::Tensor>;

class Model final : public torch::CustomClassHolder {
 public:
  Model(int64_t state_format, const std::string& sha256, const torch::Tensor& bytes) {
    TORCH_CHECK(state_format == 1, "mfmd: the archive's engine state is of version ", state_format, "; install a newer mfmd");
    const torch::Tensor flat = bytes.to(torch::kCPU, torch::kUInt8).contiguous();
    std::string content(static_cast<const char*>(flat.data_ptr()), static_cast<std::size_t>(flat.numel()));
    TORCH_CHECK(mfmd::sha256(content) == sha256, "mfmd: the weights in the archive do not match their sha256; the file is damaged");
    model_ = mfmd::Model::parse(std::move(content), "the archive");
  }

  // positions [atoms, 3] in Å; numbers [atoms]; cell [3, 3] in Å; pbc [3]; heads and weights: the terms.
  // Returns the energies of the heads (double, eV), the forces of the weighted sum [atoms, 3] in eV/Å, and its virial [3, 3] in eV,
  // both of the type of positions and where they are: on a CUDA device nothing waits for it (numbers and pbc are best on the CPU), and what cannot be
  // evaluated gives results that are not numbers, and a sentence in the next call. A host that stays on one thread keeps its workspace and with it
  // its neighbour list.
  std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> evaluate(const torch::Tensor& positions, const torch::Tensor& numbers,
                                                                   const torch::Tensor& cell, const torch::Tensor& pbc,
                                                                   const std::vector<int64_t>& heads, const std::vector<double>& weights,
                                                                   bool single, int64_t threads) {
    return evaluate_in_states(positions, numbers, cell, pbc, {}, torch::Tensor(), heads, weights, single, threads, false);
  }

  // The same of fragments, whose charges and multiplicities (0: the lowest) states has in turn; fragment: [atoms], which of them an atom belongs to, or nothing where there is
  // one. No states: a neutral closed shell, whatever its electrons.
  std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> evaluate_in_states(const torch::Tensor& positions, const torch::Tensor& numbers, const torch::Tensor& cell,
                                                                             const torch::Tensor& pbc, const std::vector<int64_t>& states,
                                                                             const torch::Tensor& fragment, const std::vector<int64_t>& heads,
                                                                             const std::vector<double>& weights, bool single, int64_t threads, bool allow_unseen) {
    TORCH_CHECK(positions.is_cpu() || positions.is_cuda(), "mfmd: positions must be on the CPU or on a CUDA device");
    TORCH_CHECK(positions.dim() == 2 && positions.size(1) == 3, "mfmd: positions must have the shape (atoms, 3)");
    TORCH_CHECK(numbers.dim() == 1 && numbers.size(0) == positions.size(0), "mfmd: numbers must hold one atomic number an atom");
    TORCH_CHECK(cell.numel() == 9 && pbc.numel() == 3, "mfmd: cell must have the shape (3, 3) and pbc the shape (3,)");
    TORCH_CHECK(heads.size() == weights.size(), "mfmd: a weight for each head is needed");
    const torch::Tensor r = positions.detach().to(torch::kFloat64).contiguous(), c = cell.detach().to(positions.device(), torch::kFloat64).contiguous();
    const torch::Tensor z = on_host(numbers), p = pbc.to(torch::kCPU, torch::kBool).contiguous();
    const torch::Tensor parts = fragment.defined() ? fragment.to(torch::kCPU, torch::kInt32).contiguous() : fragment;
    const int* const of_atoms = parts.defined() && parts.numel() ? parts.data_ptr<int>() : nullptr;
    TORCH_CHECK(states.size() % 2 == 0 && (!of_atoms || parts.numel() == z.numel()), "mfmd: states are pairs of charge and multiplicity, and fragment a number for each atom");
    std::vector<mfmd::State> of_fragments;
    for (std::size_t k = 0; k < states.size(); k += 2) of_fragments.push_back({static_cast<int>(states[k]), static_cast<int>(states[k + 1])});
    mfmd::Request request;
    for (std::size_t k = 0; k < heads.size(); ++k) request.terms.push_back({static_cast<int>(heads[k]), weights[k]});
    request.virial = true;
    request.allow_unseen_state = allow_unseen;
    try {
      of_fragments = mfmd::states_of(z.data_ptr<int>(), static_cast<int>(z.numel()), of_fragments, of_atoms, p.any().item<bool>());
    } catch (const mfmd::Error& error) {
      TORCH_CHECK(false, "mfmd: ", error.what());
    }
    if (positions.is_cuda()) return enqueue(r, z, c, p, of_fragments, of_atoms, request, single, positions.scalar_type());
    mfmd::Structure s;
    s.states = of_fragments;
    s.fragment = of_atoms;
    s.atoms = static_cast<int>(r.size(0));
    s.positions = r.data_ptr<double>();
    s.numbers = z.data_ptr<int>();
    s.cell = c.data_ptr<double>();
    for (int k = 0; k < 3; ++k) s.periodic[k] = p.data_ptr<bool>()[k];
    auto workspace = borrow(single, threads, -1);
    torch::Tensor energies, forces = torch::empty({s.atoms, 3}, torch::kFloat64), virial = torch::empty({3, 3}, torch::kFloat64);
    try {
      const mfmd::Result& result = workspace->evaluate(s, request);
      energies = torch::tensor(result.term_energies, torch::kFloat64);
      std::copy(result.forces.begin(), result.forces.end(), forces.data_ptr<double>());
      std::copy(result.virial, result.virial + 9, virial.data_ptr<double>());
    } catch (const mfmd::Error& error) {
      TORCH_CHECK(false, "mfmd: ", error.what());
    }
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back({single, threads, -1, std::move(workspace)});
    return {energies, forces.to(positions.scalar_type()), virial.to(positions.scalar_type())};
  }

  int64_t level(const std::string& name) const { return model_->level(name); }
  std::string metadata() const { return model_->metadata(); }
  std::string sha256() const { return model_->sha256(); }
  Pickled state() const {
    const std::string& bytes = model_->bytes();
    torch::Tensor tensor = torch::empty({static_cast<int64_t>(bytes.size())}, torch::kUInt8);
    std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.data_ptr()));
    return {1, model_->sha256(), tensor};
  }

 private:
  struct Idle {
    bool single;
    int64_t threads;
    int cuda;
    std::unique_ptr<mfmd::Workspace> workspace;
  };

  std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> enqueue(const torch::Tensor& r, const torch::Tensor& z, const torch::Tensor& c, const torch::Tensor& p,
                                                                  const std::vector<mfmd::State>& states, const int* fragment, const mfmd::Request& request, bool single,
                                                                  torch::ScalarType type) {
    const int cuda = r.device().index(), atoms = static_cast<int>(r.size(0));
    const auto terms = static_cast<int64_t>(request.terms.size());
    const torch::Tensor energies = torch::empty({terms + 1}, r.options()), forces = torch::empty_like(r), virial = torch::empty({3, 3}, r.options());
    mfmd::DeviceStructures s;
    s.atoms = &atoms;
    s.numbers = z.data_ptr<int>();
    s.positions = r.data_ptr<double>();
    s.cells = c.data_ptr<double>();
    for (int k = 0; k < 3; ++k) s.periodic[k] = p.data_ptr<bool>()[k];
    s.states = &states;
    s.fragment = fragment;
    s.stream = current_cuda_stream(cuda);
    auto workspace = borrow(single, 0, cuda);
    bool recorded = false;
    std::string wrong;
    try {
      recorded = workspace->enqueue(s, request, {energies.data_ptr<double>(), forces.data_ptr<double>(), virial.data_ptr<double>()});
    } catch (const mfmd::Error& error) {
      wrong = error.what();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (recorded) recorded_.push_back(std::move(workspace));
      else idle_.push_back({single, 0, cuda, std::move(workspace)});
    }
    TORCH_CHECK(wrong.empty(), "mfmd: ", wrong);
    return {energies.narrow(0, 1, terms), forces.to(type), virial.to(type)};
  }

  // Atomic numbers on the CPU, copied there once as long as the tensor stays the same.
  torch::Tensor on_host(const torch::Tensor& numbers) {
    if (numbers.is_cpu() || numbers.is_inference()) return numbers.to(torch::kCPU, torch::kInt32).contiguous();  // inference tensors have no version
    std::lock_guard<std::mutex> lock(mutex_);
    if (!seen_.defined() || !seen_.is_same(numbers) || seen_version_ != numbers._version()) {
      numbers_ = numbers.to(torch::kCPU, torch::kInt32).contiguous();
      seen_ = numbers;
      seen_version_ = numbers._version();
    }
    return numbers_;
  }

  std::unique_ptr<mfmd::Workspace> borrow(bool single, int64_t threads, int cuda) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t k = idle_.size(); k--;)
      if (idle_[k].single == single && idle_[k].threads == threads && idle_[k].cuda == cuda) {
        auto workspace = std::move(idle_[k].workspace);
        idle_.erase(idle_.begin() + static_cast<long>(k));
        return workspace;
      }
    mfmd::Options options;
    options.precision = single ? mfmd::Precision::single_ : mfmd::Precision::double_;
    options.cuda = cuda;
    options.threads = threads > 0 ? static_cast<int>(threads) : at::get_num_threads();
    return std::make_unique<mfmd::Workspace>(model_, options);
  }

  std::shared_ptr<const mfmd::Model> model_;
  std::mutex mutex_;
  std::vector<Idle> idle_;  // one for each caller that is not evaluating now
  std::vector<std::unique_ptr<mfmd::Workspace>> recorded_;  // of callers' CUDA graphs, which have their addresses
  torch::Tensor seen_, numbers_;  // on a device, and the same on the CPU
  int64_t seen_version_ = 0;
};

}  // namespace

TORCH_LIBRARY(mfmd, m) {
  m.class_<Model>("Model")
      .def(torch::init<int64_t, const std::string&, const torch::Tensor&>())
      .def("evaluate", &Model::evaluate)
      .def("evaluate_in_states", &Model::evaluate_in_states)
      .def("level", &Model::level)
      .def("metadata", &Model::metadata)
      .def("sha256", &Model::sha256)
      .def_pickle([](const c10::intrusive_ptr<Model>& self) -> Pickled { return self->state(); },
                  [](Pickled state) { return c10::make_intrusive<Model>(std::get<0>(state), std::get<1>(state), std::get<2>(state)); });
}
