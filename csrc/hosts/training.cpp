// The maps that training spends its time in (kernels/training.cpp), on addresses: whatever holds the numbers, no header of it is needed here.
// mfmd/training/maps.py calls them and checks what it gives: contiguous arrays at multiples of 64 bytes, single or double.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../kernels/stages.hpp"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
template <class U> U* at(Address address) { return reinterpret_cast<U*>(address); }

// body(T, stages, begin, end) over [0, n) by some threads, T being the type of the numbers and stages the kernels for it. The threads are those of torch's OpenMP runtime, found where
// torch has loaded it: they spin between torch's own loops, and threads of ours would share the cores with them.
template <class Body> void over(bool single, int threads, std::int64_t n, const Body& body) {
  constexpr std::int64_t kGrain = 32;
  static const auto parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const py::gil_scoped_release release;
  const auto run = [&](auto kind) {
    const auto& stages = mfmd::stages<decltype(kind)>();
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t begin; (begin = next.fetch_add(kGrain)) < n;)
        body(kind, stages, static_cast<int>(begin), static_cast<int>(std::min(begin + kGrain, n)));
    };
    if (parallel && threads > 1 && n > kGrain) parallel([](void* all) { (*static_cast<decltype(work)*>(all))(); }, const_cast<void*>(static_cast<const void*>(&work)), static_cast<unsigned>(threads), 0);
    else work();
  };
  if (single) run(float());
  else run(double());
}

}  // namespace

void bind_training(py::module_& m) {
  // n: atoms, pairs or numbers of the result; R parts and F channels, see kernels/training.cpp for shapes.
  m.def("gather", [](bool single, int threads, int n, int R, int F, Address w, Address y, Address first, Address neighbor, Address pair, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_gather(at<T>(w), at<T>(y), at<int>(first), at<int>(neighbor), at<int>(pair), at<T>(out), R, F, begin, end);
    });
  });
  m.def("dot", [](bool single, int threads, int n, int R, int F, Address a, Address b, Address i, Address j, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_dot(at<T>(a), at<T>(b), at<int>(i), at<int>(j), at<T>(out), R, F, begin, end);
    });
  });
  m.def("anticommutator", [](bool single, int threads, int n, int R, int F, Address a, Address b, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_anticommutator(at<T>(a), at<T>(b), at<T>(out), R, F, begin, end);
    });
  });
  m.def("normalize", [](bool single, int threads, int n, int R, int F, Address x, Address g, Address h, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_normalize(at<T>(x), at<T>(g), at<T>(h), at<T>(out), R * R, F, begin, end);
    });
  });
  m.def("silu_second", [](bool single, int threads, std::int64_t n, int, int, Address x, Address g, Address h, Address out) {
    constexpr std::int64_t kBlock = 128;
    over(single, threads, (n + kBlock - 1) / kBlock, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_silu_second(at<T>(x), at<T>(g), at<T>(h), at<T>(out), static_cast<int>(begin * kBlock), static_cast<int>(std::min(end * kBlock, n)));
    });
  });
  m.def("embed", [](bool single, int threads, int n, int R, int F, Address w, Address d, Address a, Address b, Address first, Address neighbor, Address pair, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_embed(at<T>(w), at<T>(d), at<T>(a), at<T>(b), at<int>(first), at<int>(neighbor), at<int>(pair), at<T>(out), R, F, begin, end);
    });
  });
  m.def("embed_weights", [](bool single, int threads, int n, int R, int F, Address d, Address a, Address b, Address g, Address i, Address j, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_embed_weights(at<T>(d), at<T>(a), at<T>(b), at<T>(g), at<int>(i), at<int>(j), at<T>(out), R, F, begin, end);
    });
  });
  m.def("embed_directions", [](bool single, int threads, int n, int R, int F, Address w, Address a, Address b, Address g, Address i, Address j, Address out) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_embed_directions(at<T>(w), at<T>(a), at<T>(b), at<T>(g), at<int>(i), at<int>(j), at<T>(out), R, F, begin, end);
    });
  });
  m.def("embed_values", [](bool single, int threads, int n, int R, int F, Address w, Address d, Address g, Address first, Address neighbor, Address pair, Address to_a, Address to_b) {
    over(single, threads, n, [&](auto kind, const auto& stages, int begin, int end) {
      using T = decltype(kind);
      stages.training_embed_values(at<T>(w), at<T>(d), at<T>(g), at<int>(first), at<int>(neighbor), at<int>(pair), at<T>(to_a), at<T>(to_b), R, F, begin, end);
    });
  });
}
