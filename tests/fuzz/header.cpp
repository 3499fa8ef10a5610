// A model's own header, whatever it says, before tensors that are right or have other numbers in places; where that is a model, it is evaluated.
#include <memory>

#include "../../csrc/archive.hpp"
#include "target.hpp"

namespace {

struct Base {
  std::string tensors, numbers;  // of a safetensors file: its header behind the metadata, what follows the header
  explicit Base(const std::string& name) : tensors(fuzz::made(name + ".tensors")), numbers(fuzz::made(name + ".numbers")) {}
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace

// First the model, how many numbers are others, and which; the rest is the header.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<Base> bases(std::begin(fuzz::kModels), std::end(fuzz::kModels));
  fuzz::Input input(data, size);
  const Base& base = bases[static_cast<std::size_t>(input.below(static_cast<int>(bases.size())))];
  std::string numbers = base.numbers;
  for (int k = input.below(4); k--;) {
    const std::size_t place = input.take<std::uint32_t>() % (numbers.size() / 4);
    const std::uint32_t bits = input.take<std::uint32_t>();
    std::memcpy(&numbers[4 * place], &bits, 4);
  }
  const std::string header = "{\"__metadata__\":{\"mfmd\":" + quoted(input.rest()) + "}," + base.tensors;
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(&bytes[0], &length, 8);
  try {
    const auto model = mfmd::Model::parse(bytes + header + numbers, "the input");
    const double positions[] = {0, 0, 0, 1.1, 0, 0.1, 0.2, 1.4, 0, -0.9, 0.8, 0.3};
    mfmd::Request request;
    request.virial = request.atom_energies = request.error_bars = request.domain = true;
    for (int k = 0; k < static_cast<int>(model->levels().size()); ++k) request.terms.push_back({k, 1.0});
    std::vector<int> of;
    for (std::size_t k = 0; k < 4; ++k) of.push_back(model->levels()[0].elements[k % model->levels()[0].elements.size()]);
    mfmd::Structure s;
    s.atoms = 4, s.positions = positions, s.numbers = of.data();
    s.states = {model->states().back()};
    for (const auto precision : {mfmd::Precision::single_, mfmd::Precision::double_}) try {
        mfmd::Options options;
        options.precision = precision;
        mfmd::Workspace workspace(model, options);
        fuzz::expect_finite(*model, request, workspace.evaluate(s, request));
      } catch (const mfmd::InputError&) {
      }
  } catch (const mfmd::ModelFileError&) {
  }
  return 0;
}
