#include <array>
#include <cmath>
#include <cstdint>

#include "archive.hpp"

namespace mfmd {

std::string sha256(const std::string& bytes) {
  // Constants are the first 32 bits of the fractional parts of roots of primes (FIPS 180-4, 4.2.2 and 5.3.3).
  static const auto constants = [] {
    std::array<std::uint32_t, 72> c{};
    for (int prime = 2, n = 0; n < 64; ++prime) {
      bool is_prime = true;
      for (int d = 2; d * d <= prime; ++d) is_prime = is_prime && prime % d != 0;
      if (!is_prime) continue;
      const auto fraction = [](long double x) { return static_cast<std::uint32_t>((x - std::floor(x)) * 4294967296.0L); };
      c[static_cast<std::size_t>(n)] = fraction(std::cbrt(static_cast<long double>(prime)));
      if (n < 8) c[static_cast<std::size_t>(64 + n)] = fraction(std::sqrt(static_cast<long double>(prime)));
      ++n;
    }
    return c;
  }();
  std::array<std::uint32_t, 8> h;
  for (std::size_t k = 0; k < 8; ++k) h[k] = constants[64 + k];

  std::string data = bytes;
  data += static_cast<char>(0x80);
  while (data.size() % 64 != 56) data += '\0';
  for (int shift = 56; shift >= 0; shift -= 8) data += static_cast<char>(static_cast<std::uint64_t>(bytes.size()) * 8 >> shift & 0xFF);

  const auto turn = [](std::uint32_t x, int n) { return x >> n | x << (32 - n); };
  for (std::size_t block = 0; block < data.size(); block += 64) {
    std::uint32_t w[64];
    for (std::size_t k = 0; k < 16; ++k) {
      w[k] = 0;
      for (std::size_t b = 0; b < 4; ++b) w[k] = w[k] << 8 | static_cast<unsigned char>(data[block + 4 * k + b]);
    }
    for (std::size_t k = 16; k < 64; ++k)
      w[k] = w[k - 16] + (turn(w[k - 15], 7) ^ turn(w[k - 15], 18) ^ w[k - 15] >> 3) + w[k - 7] +
             (turn(w[k - 2], 17) ^ turn(w[k - 2], 19) ^ w[k - 2] >> 10);
    std::array<std::uint32_t, 8> s = h;
    for (std::size_t k = 0; k < 64; ++k) {
      const std::uint32_t t1 = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[k] + w[k];
      const std::uint32_t t2 = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
    }
    for (std::size_t k = 0; k < 8; ++k) h[k] += s[k];
  }
  std::string hex;
  for (const std::uint32_t word : h)
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  return hex;
}

}  // namespace mfmd
