// GFLOP/s of multiply-adds in single precision that a core can do, operands in registers: c++ -O2 -march=native peak.cpp && ./a.out
#include <algorithm>
#include <chrono>
#include <cstdio>

#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(bytes)));

int main() {
    constexpr int rounds = 100000, sums = 12;
    volatile float half = 0.5f;
    const Vector x = Vector{} + half, y = x;
    Vector a = x, b = x * 2, c = x * 3, d = x * 4, e = x * 5, f = x * 6, g = x * 7, h = x * 8, i = x * 9, j = x * 10, k = x * 11, l = x * 12;
    double best = 0;
    for (int run = 0; run < 200; ++run) {
        auto start = std::chrono::steady_clock::now();
        for (int n = 0; n < rounds; ++n) {
            a = a * x + y, b = b * x + y, c = c * x + y, d = d * x + y, e = e * x + y, f = f * x + y;
            g = g * x + y, h = h * x + y, i = i * x + y, j = j * x + y, k = k * x + y, l = l * x + y;
        }
        double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, 2e-9 * sums * rounds * (bytes / 4) / seconds);
    }
    a += b + c + d + e + f + g + h + i + j + k + l;
    volatile float used = a[0];
    std::printf("%.1f\n", best + 0 * used);
}
