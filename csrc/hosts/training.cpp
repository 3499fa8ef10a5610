// The maps that training spends its time in (kernels/training.hpp), on addresses: whatever holds the numbers, no header of it is needed here.
// mfmd/training/maps.py calls them and checks what it gives: contiguous arrays at multiples of 64 bytes, single or double, on one device.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "../kernels/stages.hpp"
#include "../kernels/training.hpp"
#include "../mfmd.hpp"

namespace py = pybind11;

namespace {

using namespace mfmd::training;

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;
template <class U> U* at(Address address) { return reinterpret_cast<U*>(address); }

// body(range) over [0, n) by some threads. They are those of torch's OpenMP runtime, found where torch has loaded it: they spin between torch's own loops, and threads of
// ours would share the cores with them.
template <class Body> void over(int threads, std::int64_t n, const Body& body) {
  const std::int64_t grain = std::max<std::int64_t>(32, n / (8 * threads) / 32 * 32);
  static const auto parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t begin; (begin = next.fetch_add(grain)) < n;) body(mfmd::Range{static_cast<int>(begin), static_cast<int>(std::min(begin + grain, n)), nullptr});
  };
  if (parallel && threads > 1 && n > grain) parallel([](void* all) { (*static_cast<decltype(work)*>(all))(); }, const_cast<void*>(static_cast<const void*>(&work)), static_cast<unsigned>(threads), 0);
  else work();
}

// name(single, threads, stream, n, R, F, addresses): of n rows of the result; make(T, F, addresses) is the map, and which(maps) says what runs it. On the CPU where
// there is no stream, else on the CUDA device that is current.
template <class Which, class Make> void bind(py::module_& m, const char* name, const Which& which, const Make& make) {
  m.def(name, [which, make](bool single, int threads, std::optional<Address> stream, int n, int R, int F, const Addresses& a) {
    const py::gil_scoped_release release;
    const auto run = [&](auto kind) {
      using T = decltype(kind);
      const auto map = make(kind, F, a);
      if (stream) {
        const auto* maps = mfmd::training_maps_on_device<T>();
        if (!maps) throw mfmd::InputError("this build of the engine has no CUDA; build it where nvcc is, or train on the CPU");
        which(*maps)(map, R, mfmd::Range{0, n, at<void>(*stream)});
      } else over(threads, n, [&](const mfmd::Range& range) { which(*mfmd::stages<T>().training)(map, R, range); });
    };
    if (single) run(float());
    else run(double());
  });
}

}  // namespace

#define MFMD_MAP(name, make) bind(m, #name, [](const auto& maps) { return maps.name; }, [](auto kind, [[maybe_unused]] int F, const Addresses& a) { using T = decltype(kind); return make; })
#define MFMD_T(k) at<T>(a[k])
#define MFMD_I(k) at<int>(a[k])

void bind_training(py::module_& m) {
  MFMD_MAP(gather, (Gather<T>{MFMD_T(0), MFMD_T(1), MFMD_I(2), MFMD_I(3), MFMD_I(4), MFMD_T(5), F}));
  MFMD_MAP(dot, (Dot<T>{MFMD_T(0), MFMD_T(1), MFMD_I(2), MFMD_I(3), MFMD_T(4), F}));
  MFMD_MAP(anticommutator, (Anticommutator<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), static_cast<int>(a[3]), F}));
  MFMD_MAP(scale, (Scale<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), F}));
  MFMD_MAP(dots, (Dots<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), F}));
  MFMD_MAP(normalize, (Normalize<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_T(3), F}));
  MFMD_MAP(interpolate, (Interpolate<T>{MFMD_T(0), MFMD_T(1), MFMD_I(2), MFMD_T(3), F}));
  MFMD_MAP(interpolate_coefficients, (InterpolateCoefficients<T>{MFMD_T(0), MFMD_T(1), MFMD_I(2), MFMD_T(3), F}));
  MFMD_MAP(interpolate_table, (InterpolateTable<T>{MFMD_T(0), MFMD_T(1), MFMD_I(2), MFMD_I(3), MFMD_T(4), F}));
  MFMD_MAP(embed, (Embed<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_T(3), MFMD_I(4), MFMD_I(5), MFMD_I(6), MFMD_T(7), F}));
  MFMD_MAP(embed_weights, (EmbedWeights<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_T(3), MFMD_I(4), MFMD_I(5), MFMD_T(6), F}));
  MFMD_MAP(embed_directions, (EmbedDirections<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_T(3), MFMD_I(4), MFMD_I(5), MFMD_T(6), F}));
  MFMD_MAP(embed_values, (EmbedValues<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_I(3), MFMD_I(4), MFMD_I(5), MFMD_T(6), MFMD_T(7), F}));
  MFMD_MAP(silu_second, (SiluSecond<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), MFMD_T(3)}));
  MFMD_MAP(mix, (Mix<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), F}));
  MFMD_MAP(mix_weights, (MixWeights<T>{MFMD_T(0), MFMD_T(1), MFMD_T(2), static_cast<int>(a[3]), F}));
}
