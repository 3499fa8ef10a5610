#include "archive.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <locale>
#include <sstream>

#include "mfmd.hpp"

namespace mfmd {

namespace {

[[noreturn]] void refuse(const std::string& origin, const std::string& why) { throw ModelFileError(origin + ": " + why); }

// ---------------------------------------------------------------- JSON
class Parser {
 public:
  Parser(const std::string& text, const std::string& origin) : text_(text), origin_(origin) {}
  Json document() {
    check_utf8();
    const Json value = read(0);
    space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  [[noreturn]] void fail() const { refuse(origin_, "its JSON header is damaged at byte " + std::to_string(at_)); }
  // Well-formed (RFC 3629): those who read names out of it rely on that.
  void check_utf8() {
    for (at_ = 0; at_ < text_.size();) {
      const unsigned lead = static_cast<unsigned char>(text_[at_]);
      const std::size_t more = lead < 0x80 ? 0 : lead < 0xC2 ? 9 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 9;
      if (more > 3 || at_ + more >= text_.size() + (more == 0)) fail();
      unsigned code = more ? lead & (0x3Fu >> more) : lead;
      for (std::size_t k = 1; k <= more; ++k) {
        const unsigned next = static_cast<unsigned char>(text_[at_ + k]);
        if ((next & 0xC0u) != 0x80u) fail();
        code = code << 6 | (next & 0x3Fu);
      }
      if ((more == 2 && (code < 0x800 || (code >= 0xD800 && code < 0xE000))) || (more == 3 && (code < 0x10000 || code > 0x10FFFF))) fail();
      at_ += 1 + more;
    }
    at_ = 0;
  }
  void space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) ++at_;
  }
  char peek() {
    space();
    if (at_ >= text_.size()) fail();
    return text_[at_];
  }
  void expect(char c) {
    if (peek() != c) fail();
    ++at_;
  }
  bool word(const char* w) {
    const std::size_t n = std::strlen(w);
    if (text_.compare(at_, n, w) != 0) return false;
    at_ += n;
    return true;
  }
  std::string quoted() {
    expect('"');
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) fail();
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= text_.size()) fail();
      const char escape = text_[at_++];
      static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
      if (const char* hit = std::strchr(from, escape); hit && escape) out += to[hit - from];
      else if (escape == 'u') utf8(out, hex4());
      else fail();
    }
  }
  unsigned hex4() {
    if (at_ + 4 > text_.size()) fail();
    const std::string digits = text_.substr(at_, 4);
    if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail();
    at_ += 4;
    return static_cast<unsigned>(std::strtoul(digits.c_str(), nullptr, 16));
  }
  void utf8(std::string& out, unsigned code) {
    if (code >= 0xD800 && code < 0xE000) {  // a surrogate pair
      if (code >= 0xDC00 || !word("\\u")) fail();
      const unsigned second = hex4();
      if (second < 0xDC00 || second >= 0xE000) fail();
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    if (code < 0x80) return void(out += static_cast<char>(code));
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    out += static_cast<char>((0xF00 >> (more + 1) & 0xFF) | (code >> 6 * more));
    while (more--) out += static_cast<char>(0x80 | (code >> 6 * more & 0x3F));
  }
  Json read(int depth) {
    if (depth > 64) fail();
    Json value;
    switch (peek()) {
      case '{':
        value.kind = Json::object_;
        ++at_;
        if (peek() == '}') return ++at_, value;
        for (;;) {
          peek();
          const std::string key = quoted();
          expect(':');
          if (!value.object.emplace(key, read(depth + 1)).second) fail();
          if (peek() == '}') return ++at_, value;
          expect(',');
        }
      case '[':
        value.kind = Json::array_;
        ++at_;
        if (peek() == ']') return ++at_, value;
        for (;;) {
          value.array.push_back(read(depth + 1));
          if (peek() == ']') return ++at_, value;
          expect(',');
        }
      case '"':
        value.kind = Json::string_;
        value.string = quoted();
        return value;
      default:
        break;
    }
    if (word("null")) return value;
    if (word("true") || word("false")) {
      value.kind = Json::bool_;
      value.boolean = text_[at_ - 2] == 'u';
      return value;
    }
    const std::size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
    const std::string digits = text_.substr(at_, end - at_);
    std::istringstream in(digits);
    in.imbue(std::locale::classic());  // a point, whatever the program's language
    value.kind = Json::number_;
    if (!(in >> value.number) || in.peek() != EOF) fail();
    at_ += digits.size();
    return value;
  }

  const std::string& text_;
  const std::string& origin_;
  std::size_t at_ = 0;
};

// ---------------------------------------------------------------- zip
std::uint32_t crc32(const char* data, std::size_t size) {
  static const std::array<std::uint32_t, 256> table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t n = 0; n < 256; ++n) {
      std::uint32_t c = n;
      for (int k = 0; k < 8; ++k) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
      t[n] = c;
    }
    return t;
  }();
  std::uint32_t c = 0xFFFFFFFFu;
  for (std::size_t k = 0; k < size; ++k) c = table[(c ^ static_cast<unsigned char>(data[k])) & 0xFF] ^ (c >> 8);
  return c ^ 0xFFFFFFFFu;
}

// Little-endian integers at checked offsets.
class Bytes {
 public:
  Bytes(const std::string& data, const std::string& origin) : data_(data), origin_(origin) {}
  std::uint64_t number(std::uint64_t offset, int width) const {
    need(offset, static_cast<std::uint64_t>(width));
    std::uint64_t value = 0;
    for (int k = width; k--;) value = value << 8 | static_cast<unsigned char>(data_[offset + static_cast<std::uint64_t>(k)]);
    return value;
  }
  std::string text(std::uint64_t offset, std::uint64_t size) const {
    need(offset, size);
    return data_.substr(offset, size);
  }

 private:
  void need(std::uint64_t offset, std::uint64_t size) const {
    if (offset > data_.size() || size > data_.size() - offset) refuse(origin_, "the archive is truncated");
  }
  const std::string& data_;
  const std::string& origin_;
};

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || !std::filesystem::is_regular_file(path)) throw ModelFileError(path + ": no such model file, or it cannot be read");
  std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw ModelFileError(path + ": the model file cannot be read to its end");
  return data;
}

}  // namespace

Json Json::parse(const std::string& text, const std::string& origin) { return Parser(text, origin).document(); }

const Json& Json::get(const std::string& key, Kind wanted, const std::string& origin) const {
  const auto hit = object.find(key);
  if (hit == object.end()) refuse(origin, "its header has no `" + key + "`");
  if (hit->second.kind != wanted) refuse(origin, "`" + key + "` in its header is of the wrong type");
  return hit->second;
}

int Json::integer(const std::string& key, int lowest, int highest, const std::string& origin) const {
  const double value = get(key, number_, origin).number;
  if (value != std::floor(value) || value < lowest || value > highest)
    refuse(origin, "`" + key + "` in its header must be a whole number from " + std::to_string(lowest) + " to " +
                       std::to_string(highest));
  return static_cast<int>(value);
}

std::string read_entry(const std::string& path, const std::string& suffix) {
  const std::string data = slurp(path);
  const Bytes bytes(data, path);
  if (data.size() < 22 || data.compare(0, 4, "PK\3\4") != 0)
    refuse(path, "not a model file (no zip archive starts here); train one with mfmd-train");

  // The end record, behind at most 64 KiB of comment; its ZIP64 twin where the fields overflow.
  std::uint64_t end = data.size() - 22;
  while (data.compare(end, 4, "PK\5\6") != 0) {
    if (end == 0 || data.size() - end > 22 + 65535) refuse(path, "the archive is truncated (its directory is missing)");
    --end;
  }
  std::uint64_t count = bytes.number(end + 10, 2), directory = bytes.number(end + 16, 4);
  if (end >= 20 && data.compare(end - 20, 4, "PK\6\7") == 0) {
    const std::uint64_t end64 = bytes.number(end - 12, 8);
    if (bytes.text(end64, 4) != std::string("PK\6\6")) refuse(path, "the archive's ZIP64 directory is damaged");
    count = bytes.number(end64 + 32, 8);
    directory = bytes.number(end64 + 48, 8);
  }

  std::string content;
  bool found = false;
  for (std::uint64_t entry = directory; count--;) {
    if (bytes.text(entry, 4) != std::string("PK\1\2")) refuse(path, "the archive's directory is damaged");
    const std::uint64_t method = bytes.number(entry + 10, 2), crc = bytes.number(entry + 16, 4);
    std::uint64_t packed = bytes.number(entry + 20, 4), size = bytes.number(entry + 24, 4), local = bytes.number(entry + 42, 4);
    const std::uint64_t name_size = bytes.number(entry + 28, 2), extra_size = bytes.number(entry + 30, 2);
    const std::string name = bytes.text(entry + 46, name_size);
    // ZIP64 fields stand in the extra block, in this order, each only where its short field overflowed.
    for (std::uint64_t at = entry + 46 + name_size, stop = at + extra_size; at + 4 <= stop;) {
      const std::uint64_t id = bytes.number(at, 2), length = bytes.number(at + 2, 2);
      if (id == 1) {
        std::uint64_t field = at + 4;
        for (std::uint64_t* value : {&size, &packed, &local})
          if (*value == 0xFFFFFFFFu) *value = bytes.number(field, 8), field += 8;
      }
      at += 4 + length;
    }
    entry += 46 + name_size + extra_size + bytes.number(entry + 32, 2);
    if (name.size() < suffix.size() || name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) continue;
    if (found) refuse(path, "the archive has two entries " + suffix);
    if (method != 0 || packed != size) refuse(path, "the entry " + name + " is compressed; it must be stored");
    if (bytes.text(local, 4) != std::string("PK\3\4")) refuse(path, "the entry " + name + " is damaged");
    content = bytes.text(local + 30 + bytes.number(local + 26, 2) + bytes.number(local + 28, 2), size);
    if (crc32(content.data(), content.size()) != crc) refuse(path, "the entry " + name + " is damaged (its checksum is wrong)");
    found = true;
  }
  if (!found) refuse(path, "no mfmd model (the archive has no entry " + suffix + "); export one with mfmd-train or mfmd export");
  return content;
}

TensorFile read_tensors(const std::string& bytes, const std::string& origin) {
  const Bytes reader(bytes, origin);
  const std::uint64_t header_size = reader.number(0, 8);
  const Json header = Json::parse(reader.text(8, header_size), origin);
  if (header.kind != Json::object_) refuse(origin, "its header is not a JSON object");
  const std::uint64_t start = 8 + header_size;
  const auto whole = [](const Json& n, double most) { return n.kind == Json::number_ && n.number >= 0 && n.number <= most && n.number == std::floor(n.number); };

  TensorFile file;
  for (const auto& [name, entry] : header.object) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.object) file.metadata[key] = value.string;
      continue;
    }
    const std::string where = "tensor " + name;
    const std::string& dtype = entry.get("dtype", Json::string_, origin).string;
    const int width = dtype == "F32" ? 4 : dtype == "F64" ? 8 : 0;
    if (!width) refuse(origin, where + " is of type " + dtype + "; F32 and F64 are known");
    Tensor tensor;
    std::uint64_t count = 1;
    for (const Json& n : entry.get("shape", Json::array_, origin).array) {
      if (!whole(n, 1e9)) refuse(origin, where + " has a damaged shape");
      tensor.shape.push_back(static_cast<std::int64_t>(n.number));
      count *= static_cast<std::uint64_t>(n.number);
      if (count > bytes.size()) refuse(origin, where + " is larger than the file");
    }
    const auto& extent = entry.get("data_offsets", Json::array_, origin).array;
    if (extent.size() != 2 || !whole(extent[0], 1e15) || !whole(extent[1], 1e15) || extent[1].number - extent[0].number != static_cast<double>(count) * width)
      refuse(origin, where + " has extents that do not fit its shape");
    const std::string raw = reader.text(start + static_cast<std::uint64_t>(extent[0].number), count * static_cast<std::uint64_t>(width));
    tensor.values.resize(count);
    for (std::uint64_t k = 0; k < count; ++k) {
      if (width == 8) {
        std::memcpy(&tensor.values[k], raw.data() + 8 * k, 8);
      } else {
        float value;
        std::memcpy(&value, raw.data() + 4 * k, 4);
        tensor.values[k] = value;
      }
      if (!std::isfinite(tensor.values[k])) refuse(origin, where + " holds a non-finite number");
    }
    file.tensors.emplace(name, std::move(tensor));
  }
  return file;
}

}  // namespace mfmd
