// What the targets share: numbers out of the bytes that libFuzzer gives, and a file of them. A target ends the process where the product does wrong.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../../csrc/mfmd.hpp"

namespace fuzz {

inline void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "WRONG: %s\n", what);
  std::abort();
}

// Zeros behind the end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  template <class T> T take() {
    T value{};
    const std::size_t n = sizeof(T) < size_ ? sizeof(T) : size_;
    if (n) std::memcpy(&value, data_, n);
    data_ += n, size_ -= n;
    return value;
  }
  int below(int count) { return take<std::uint8_t>() % count; }
  bool flag() { return take<std::uint8_t>() & 1; }
  // Raw bits, or what a structure may well have.
  double number(bool raw) { return raw ? take<double>() : take<std::int16_t>() / 4096.0; }
  std::string rest() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// The path of a file in memory that holds these bytes, until the next one.
inline std::string file_of(const std::string& bytes) {
  static const int file = memfd_create("input", 0);
  expect(file >= 0 && ftruncate(file, 0) == 0 && pwrite(file, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()), "no file in memory");
  return "/proc/self/fd/" + std::to_string(file);
}

// A file that tests/fuzz/seeds.py has made.
inline std::string made(const std::string& name) {
  const char* folder = std::getenv("MFMD_FUZZ");
  expect(folder, "MFMD_FUZZ names no folder that tests/fuzz/seeds.py has written");
  std::ifstream file(std::string(folder) + "/" + name, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  expect(!bytes.empty(), "a file of tests/fuzz/seeds.py is missing");
  return bytes;
}

constexpr const char* kModels[] = {"small", "layers", "published", "charged", "linear", "ensemble"};

inline void expect_finite(const mfmd::Model& model, const mfmd::Request& request, const mfmd::Result& result) {
  const auto all = [](const std::vector<double>& values) {
    for (const double v : values)
      if (!std::isfinite(v)) return false;
    return true;
  };
  expect(std::isfinite(result.energy) && all(result.term_energies), "an energy is not finite");
  expect(all(result.forces), "a force is not finite");
  expect(all({result.virial, result.virial + 9}) && all(result.atom_virials), "a virial is not finite");
  expect(all(result.atom_energies), "an atom's energy is not finite");
  for (std::size_t k = 0; k < result.term_errors.size(); ++k)
    expect(!model.levels()[static_cast<std::size_t>(request.terms[k].head)].error_bars || std::isfinite(result.term_errors[k]), "a standard deviation is not finite");
}

}  // namespace fuzz
