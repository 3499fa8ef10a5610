// The lines `pair_style mfmd …` and `pair_coeff …` in a LAMMPS of two atom types, whatever they say; where they are good, energy and forces
// are computed. One LAMMPS has them all, one behind the other, as in a session at its prompt: what one input leaves the next one finds.
#include <library.h>

#include "target.hpp"

namespace {

// Arguments as LAMMPS splits them; what it makes of $, quotes and continued lines is its own affair.
std::string plain(std::string text) {
  for (char& c : text)
    if (c < ' ' || c > '~' || std::strchr("$&#\"'", c)) c = ' ';
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static void* const lammps = [] {
    const char* arguments[] = {"lammps", "-log", "none", "-screen", "none", "-nocite"};
    void* handle = lammps_open_no_mpi(6, const_cast<char**>(arguments), nullptr);
    fuzz::expect(handle, "LAMMPS does not start");
    const std::string plugin = std::string("plugin load ") + std::getenv("MFMD_FUZZ_PLUGIN");
    for (const char* line : {plugin.c_str(), "units metal", "boundary f f f", "atom_modify map array", "region box block -1 6 -1 6 -1 6", "create_box 2 box",
                             "create_atoms 1 single 0 0 0", "create_atoms 2 single 1.1 0.2 0.1", "mass * 12.0"}) {
      lammps_command(handle, line);
      char said[400] = "";
      if (lammps_has_error(handle)) lammps_get_last_error_message(handle, said, 400);
      fuzz::expect(!*said, said);
    }
    fuzz::expect(lammps_has_style(handle, "pair", "mfmd"), "the plugin is not loaded");
    return handle;
  }();
  static const std::string model = std::string(std::getenv("MFMD_FUZZ")) + "/charged.pt";
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t line = text.find('\n');
  std::string style = plain(text.substr(0, line)), coefficients = line == std::string::npos ? "" : plain(text.substr(line + 1));
  if (const std::size_t at = coefficients.find('@'); at != std::string::npos) coefficients.replace(at, 1, model);
  for (const std::string& command : {"pair_style mfmd " + style, "pair_coeff " + coefficients, std::string("run 0")}) {
    lammps_command(lammps, command.c_str());
    if (!lammps_has_error(lammps)) continue;
    char said[2000];
    lammps_get_last_error_message(lammps, said, 2000);
    return 0;
  }
  fuzz::expect(std::isfinite(lammps_get_thermo(lammps, "pe")), "an energy is not finite");
  return 0;
}
