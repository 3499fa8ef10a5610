// Reading a model file without torch: the zip entry, the safetensors header, a hash.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mfmd {

// A JSON value; numbers are doubles, and finite.
struct Json {
  enum Kind { null_, bool_, number_, string_, array_, object_ } kind = null_;
  bool boolean = false;
  double number = 0.0;
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;

  // Throws ModelFileError naming `origin` and the offset.
  static Json parse(const std::string& text, const std::string& origin);
  // The member `key` of the wanted kind; ModelFileError naming the key otherwise.
  const Json& get(const std::string& key, Kind wanted, const std::string& origin) const;
  int integer(const std::string& key, int lowest, int highest, const std::string& origin) const;
};

// The stored zip entry whose name ends with `suffix`, its CRC checked. Throws ModelFileError.
std::string read_entry(const std::string& path, const std::string& suffix);

std::string sha256(const std::string& bytes);  // hexadecimal

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;  // every stored type (F32, F64) widens exactly
};
struct TensorFile {
  std::map<std::string, std::string> metadata;
  std::map<std::string, Tensor> tensors;
};
// A safetensors file: header and extents checked, every value finite. Throws ModelFileError.
TensorFile read_tensors(const std::string& bytes, const std::string& origin);

}  // namespace mfmd
