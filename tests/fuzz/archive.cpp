// Any bytes as a model.pt: the zip archive, its directory, its entry.
#include "../../csrc/archive.hpp"

#include "target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    mfmd::read_entry(fuzz::file_of({reinterpret_cast<const char*>(data), size}), "/extra/mfmd.safetensors");
  } catch (const mfmd::ModelFileError&) {
  }
  return 0;
}
