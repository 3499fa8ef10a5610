// libFuzzer with what g++ gives it: the comparisons it traces itself; where the program has been is counted here, by the addresses of its blocks.
#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" int LLVMFuzzerRunDriver(int* argc, char*** argv, int (*target)(const std::uint8_t*, std::size_t));

__attribute__((section("__libfuzzer_extra_counters"), used)) static std::uint8_t counters[1 << 15];
extern "C" void __sanitizer_cov_trace_pc() {
  const auto block = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  ++counters[block * 0x9e3779b97f4a7c15 >> 49];
}
extern "C" void __sanitizer_cov_trace_cmpf(float, float) {}  // which libFuzzer does not know
extern "C" void __sanitizer_cov_trace_cmpd(double, double) {}

int main(int argc, char** argv) { return LLVMFuzzerRunDriver(&argc, &argv, LLVMFuzzerTestOneInput); }
