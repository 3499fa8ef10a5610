// Any bytes as the archive's entry: the safetensors header, the extents, the numbers.
#include "../../csrc/archive.hpp"
#include "target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    for (const auto& [name, tensor] : mfmd::read_tensors({reinterpret_cast<const char*>(data), size}, "the input").tensors)
      for (const double value : tensor.values) fuzz::expect(std::isfinite(value), "a weight is not finite");
  } catch (const mfmd::ModelFileError&) {
  }
  return 0;
}
