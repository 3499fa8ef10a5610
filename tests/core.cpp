// The core from C++, as a host in C++ uses it: what `make sanitize` runs under ThreadSanitizer, AddressSanitizer and UBSan.
//
//     core_test model.pt …
//
// Each model is evaluated in every combination of precision, radial path and number of threads, by several threads at once
// that share it, on structures that move; each result is compared with the exact one in double. Then its bytes are damaged.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../csrc/mfmd.hpp"

namespace {

int failures = 0;
void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

struct Sample {
  std::vector<double> positions, cell;
  std::vector<int> numbers;
  bool periodic = false;
  mfmd::Structure view() const {
    mfmd::Structure s;
    s.atoms = static_cast<int>(numbers.size());
    s.positions = positions.data(), s.numbers = numbers.data(), s.cell = cell.data();
    for (bool& p : s.periodic) p = periodic;
    return s;
  }
};

// Atoms of the model on a jittered lattice 1.6 Å wide, in a triclinic cell if periodic.
Sample sample(int per_side, bool periodic, const std::vector<int>& elements, unsigned seed) {
  Sample s;
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> jitter(-0.2, 0.2);
  s.periodic = periodic;
  const double length = 1.6 * per_side;
  s.cell = {length, 0, 0, 0.2, length, 0, -0.1, 0.3, length};
  for (int x = 0; x < per_side; ++x)
    for (int y = 0; y < per_side; ++y)
      for (int z = 0; z < per_side; ++z) {
        for (const int k : {x, y, z}) s.positions.push_back(1.6 * k + jitter(random));
        s.numbers.push_back(elements[random() % elements.size()]);
      }
  return s;
}

mfmd::Request everything(const mfmd::Model& model) {
  mfmd::Request request;
  for (int k = 0; k < static_cast<int>(model.levels().size()); ++k) request.terms.push_back({k, 1.0 / (k + 1)});
  request.virial = request.atom_energies = true;
  return request;
}

void check_evaluations(const std::shared_ptr<const mfmd::Model>& model) {
  const mfmd::Request request = everything(*model);
  for (const bool periodic : {false, true})
    for (const int per_side : {1, 2, 4}) {
      if (periodic && per_side == 1) continue;
      Sample s = sample(per_side, periodic, model->elements(), static_cast<unsigned>(per_side));
      mfmd::Options reference;
      reference.precision = mfmd::Precision::double_;
      reference.tables = false;
      mfmd::Workspace exact(model, reference);
      const mfmd::Result wanted = exact.evaluate(s.view(), request);
      double largest = 1.0;
      for (const double f : wanted.forces) largest = std::fmax(largest, std::fabs(f));
      // Callers in threads of their own, each with threads of its own.
      std::vector<std::thread> callers;
      std::vector<std::string> errors(4);
      for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&, caller] {
          mfmd::Options options;
          options.precision = caller % 2 ? mfmd::Precision::single_ : mfmd::Precision::double_;
          options.tables = caller < 2;
          options.threads = 1 + caller;
          mfmd::Workspace workspace(model, options);
          Sample moving = s;
          for (int step = 0; step < 3; ++step) {  // there and back again: a list is aged, rebuilt, and leaves no trace
            for (double& r : moving.positions) r += step == 0 ? 0.0 : step == 1 ? 0.3 : -0.3;
            const mfmd::Result& got = workspace.evaluate(moving.view(), request);
            for (std::size_t k = 0; k < got.forces.size(); ++k)
              if (!(std::fabs(got.forces[k] - wanted.forces[k]) < 1e-4 * largest)) errors[static_cast<std::size_t>(caller)] = "forces differ";
          }
        });
      for (std::thread& caller : callers) caller.join();
      for (const std::string& error : errors) expect(error.empty(), error + " (" + std::to_string(s.numbers.size()) + " atoms)");
    }
}

// A host that owns its images: all atoms twice, the second time as ghosts far away, and pairs of its own.
void check_host_pairs(const std::shared_ptr<const mfmd::Model>& model) {
  const Sample s = sample(2, false, model->elements(), 9);
  const int n = static_cast<int>(s.numbers.size());
  mfmd::Structure view = s.view();
  std::vector<int> first{0}, j;
  for (int a = 0; a < n; ++a) {
    for (int b = 0; b < n; ++b)
      if (b != a) j.push_back(b);
    first.push_back(static_cast<int>(j.size()));
  }
  const mfmd::HostPairs pairs{first.data(), j.data(), 0};
  std::vector<double> positions = s.positions;
  std::vector<int> numbers = s.numbers;
  for (int k = 0; k < 3 * n; ++k) positions.push_back(s.positions[static_cast<std::size_t>(k)] + 1000.0);
  numbers.insert(numbers.end(), s.numbers.begin(), s.numbers.end());
  mfmd::Workspace own(model, {}), hosted(model, {});
  const mfmd::Result wanted = own.evaluate(view, everything(*model));
  view.positions = positions.data(), view.numbers = numbers.data(), view.ghosts = n, view.pairs = &pairs;
  int fills = 0;
  view.fill_ghosts = [&](void* rows, std::size_t width) {
    ++fills;
    std::copy_n(static_cast<const char*>(rows), static_cast<std::size_t>(n) * width, static_cast<char*>(rows) + static_cast<std::size_t>(n) * width);
  };
  const mfmd::Result& got = hosted.evaluate(view, everything(*model));
  expect(fills > 0, "ghosts were never filled");
  for (std::size_t k = 0; k < wanted.forces.size(); ++k) expect(std::fabs(got.forces[k] - wanted.forces[k]) < 1e-4, "forces over the host's pairs differ");
}

void check_damage(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(file)), {});
  const std::string bytes = mfmd::Model::load(path)->bytes(), copy = path + ".damaged";
  std::mt19937 random(1);
  int refused = 0;
  for (int k = 0; k < 60; ++k) {
    std::string bad = content, entry = bytes;
    if (k % 3 == 0) bad.resize(random() % bad.size()), entry.resize(random() % entry.size());
    else bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8), entry[random() % std::min<std::size_t>(entry.size(), 4000)] ^= static_cast<char>(1 << random() % 8);
    std::ofstream(copy, std::ios::binary) << bad;
    try {
      mfmd::Model::load(copy);
    } catch (const mfmd::ModelFileError&) {
      ++refused;
    }
    try {
      mfmd::Model::parse(entry, "damaged bytes");
    } catch (const mfmd::ModelFileError&) {
      ++refused;
    }
  }
  std::remove(copy.c_str());
  expect(refused > 40, "damage goes unnoticed");
}

void check_refusals(const std::shared_ptr<const mfmd::Model>& model) {
  const auto refused = [&](const char* what, const Sample& s) {
    mfmd::Workspace workspace(model, {});
    try {
      workspace.evaluate(s.view(), everything(*model));
      expect(false, std::string(what) + " is not refused");
    } catch (const mfmd::InputError&) {
    }
  };
  Sample s = sample(2, true, model->elements(), 3);
  s.positions[0] = NAN;
  refused("a position that is no number", s);
  s = sample(2, true, model->elements(), 3);
  std::copy_n(s.positions.begin(), 3, s.positions.begin() + 3);
  refused("an overlap", s);
  s = sample(2, true, model->elements(), 3);
  s.numbers[1] = 92;
  refused("an element never trained on", s);
  s = sample(2, true, model->elements(), 3);
  s.cell.assign(9, 0.0);
  refused("a flat cell", s);
}

}  // namespace

int main(int count, char** paths) {
  for (int k = 1; k < count; ++k) {
    const auto model = mfmd::Model::load(paths[k]);
    check_evaluations(model);
    check_host_pairs(model);
    check_refusals(model);
    if (k == 1) check_damage(paths[k]);
  }
  std::printf("%d models, %d failures\n", count - 1, failures);
  return failures || count < 2 ? 1 : 0;
}
