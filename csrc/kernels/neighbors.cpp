#include "neighbors.hpp"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <numeric>

namespace mfmd {

namespace {

// Position along a Z curve (Morton 1966) through cells of a grid: the bits of the three coordinates interleaved.
std::uint64_t along_curve(const unsigned cell[3]) {
  std::uint64_t key = 0;
  for (unsigned bit = 0; bit < 20; ++bit)
    for (unsigned k = 0; k < 3; ++k) key |= static_cast<std::uint64_t>(cell[k] >> bit & 1u) << (3 * bit + k);
  return key;
}

}  // namespace

Lattice lattice(const double* cell, const bool periodic[3]) {
  for (int k = 0; k < 3; ++k)
    for (int a = 0; a < 3 && periodic[k]; ++a)
      if (!std::isfinite(cell[3 * k + a])) throw InputError("cell vector " + std::to_string(k) + " is not finite");
  Lattice l;
  if (const int k = find_lattice(cell, periodic, l); k >= 0)
    throw InputError("the cell is flat: periodic cell vector " + std::to_string(k) +
                     " is zero or lies in the plane of the others; give a cell with a volume or set pbc to false");
  return l;
}

bool SkinList::stale(const Structure& s) const {
  const std::size_t n = 3 * static_cast<std::size_t>(s.atoms + s.ghosts);
  if (rebuilds_ == 0 || built_positions_.size() != n || built_on_host_ != (s.pairs != nullptr)) return true;
  if (s.pairs && s.pairs->version != built_version_) return true;
  for (std::size_t k = 0; k < 3 && !s.pairs; ++k) {
    if (built_periodic_[k] != s.periodic[k]) return true;
    if (s.periodic[k] && !std::equal(s.cell + 3 * k, s.cell + 3 * k + 3, built_cell_.begin() + 3 * static_cast<long>(k))) return true;
  }
  double farthest = 0.0;
  for (std::size_t i = 0; i < n; i += 3) {
    double d[3];
    for (std::size_t a = 0; a < 3; ++a) d[a] = s.positions[i + a] - built_positions_[i + a];
    farthest = std::max(farthest, dot(d, d));
  }
  return 4.0 * farthest > skin_width_ * skin_width_;
}

void SkinList::build(const Structure& s, Pool& pool) {
  const int n = s.atoms;
  const double reach = cutoff_ + skin_width_;
  built_positions_.clear();  // a structure that is refused below leaves no list
  rows_.resize(static_cast<std::size_t>(n));
  order_.resize(static_cast<std::size_t>(n + s.ghosts));
  std::iota(order_.begin(), order_.end(), 0);
  row_of_ = order_;
  if (s.pairs) {
    pool.loop(n, 256, [&](int begin, int end, int) {
      for (int i = begin; i < end; ++i) {
        auto& row = rows_[static_cast<std::size_t>(i)];
        row.clear();
        for (int p = s.pairs->first[i]; p < s.pairs->first[i + 1]; ++p) {
          const double *a = s.positions + 3 * static_cast<std::size_t>(i), *b = s.positions + 3 * static_cast<std::size_t>(s.pairs->j[p]);
          const double d[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
          if (dot(d, d) < reach * reach) row.push_back({s.pairs->j[p], {0, 0, 0}});
        }
        std::sort(row.begin(), row.end(), before);
      }
    });
  } else {
    const Lattice l = lattice(s.cell, s.periodic);
    for (int k = 0; k < 3; ++k)
      if (s.periodic[k] && reach > 100.0 * l.height[k])
        throw InputError("the cell is flat: along periodic direction " + std::to_string(k) + " it is less than a hundredth of the cutoff high");
    // Fractional coordinates, wrapped along periodic directions: frac - wrap lies in [low, low + extent].
    std::vector<double> frac(3 * static_cast<std::size_t>(n));
    std::vector<int> wrap(frac.size(), 0);
    double low[3] = {0, 0, 0}, high[3] = {1, 1, 1};
    for (int k = 0; k < 3; ++k)
      if (!s.periodic[k]) low[k] = HUGE_VAL, high[k] = -HUGE_VAL;
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < 3; ++k) {
        const double* r = s.positions + 3 * static_cast<std::size_t>(i);
        const std::size_t at = 3 * static_cast<std::size_t>(i) + static_cast<std::size_t>(k);
        double f = r[0] * l.inverse[k] + r[1] * l.inverse[3 + k] + r[2] * l.inverse[6 + k];
        if (s.periodic[k]) {
          const double turns = std::floor(f);
          if (std::fabs(turns) > 1e8)
            throw InputError("atom " + std::to_string(i) + " is more than 1e8 cells away from the origin; wrap the positions");
          wrap[at] = static_cast<int>(turns);
          f -= turns;
        } else {
          low[k] = std::min(low[k], f);
          high[k] = std::max(high[k], f);
        }
        frac[at] = f;
      }
    // Rows along the curve, in cells of 6 Å.
    std::vector<std::uint64_t> key(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < key.size(); ++i) {
      unsigned cell[3];
      for (std::size_t k = 0; k < 3; ++k) cell[k] = static_cast<unsigned>(std::min((frac[3 * i + k] - low[k]) * l.height[k] / 6.0, 1048575.0));
      key[i] = along_curve(cell);
    }
    std::sort(order_.begin(), order_.end(), [&](int a, int b) {
      const std::uint64_t ka = key[static_cast<std::size_t>(a)], kb = key[static_cast<std::size_t>(b)];
      return ka != kb ? ka < kb : a < b;
    });
    for (int row = 0; row < n; ++row) row_of_[static_cast<std::size_t>(order_[static_cast<std::size_t>(row)])] = row;
    // Bins at least as wide as the reach where the cell allows it; `span` of them to look at on either side.
    int bins[3], span[3];
    double extent[3];
    for (int k = 0; k < 3; ++k) {
      extent[k] = s.periodic[k] ? 1.0 : high[k] - low[k];
      bins[k] = static_cast<int>(std::min(1024.0, std::max(1.0, std::floor(extent[k] * l.height[k] / reach))));
    }
    while (static_cast<double>(bins[0]) * bins[1] * bins[2] > 8.0 + n) {  // a sparse box needs no more bins than atoms
      int* most = std::max_element(bins, bins + 3);
      *most = (*most + 1) / 2;
    }
    for (int k = 0; k < 3; ++k) {
      const double ratio = reach * bins[k] / (extent[k] * l.height[k]);
      if (s.periodic[k]) span[k] = 1 + static_cast<int>(ratio * (1 + 1e-12));
      else span[k] = bins[k] == 1 ? 0 : 1 + static_cast<int>(ratio * (1 + 1e-12));
    }
    const auto bin_of = [&](std::size_t at, int k) {
      const double f = extent[k] > 0.0 ? (frac[at + static_cast<std::size_t>(k)] - low[k]) / extent[k] : 0.0;
      return std::min(bins[k] - 1, static_cast<int>(f * bins[k]));
    };
    std::vector<int> start(static_cast<std::size_t>(bins[0] * bins[1] * bins[2]) + 1, 0), home(static_cast<std::size_t>(n)), binned(home.size());
    for (int i = 0; i < n; ++i) {
      const std::size_t at = 3 * static_cast<std::size_t>(i);
      home[static_cast<std::size_t>(i)] = (bin_of(at, 0) * bins[1] + bin_of(at, 1)) * bins[2] + bin_of(at, 2);
      ++start[static_cast<std::size_t>(home[static_cast<std::size_t>(i)]) + 1];
    }
    for (std::size_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
    std::vector<int> cursor(start.begin(), start.end() - 1);
    for (int i = 0; i < n; ++i)
      binned[static_cast<std::size_t>(cursor[static_cast<std::size_t>(home[static_cast<std::size_t>(i)])]++)] = i;

    pool.loop(n, 64, [&](int begin, int end, int) {
      for (int at_row = begin; at_row < end; ++at_row) {
        const int i = order_[static_cast<std::size_t>(at_row)];
        auto& row = rows_[static_cast<std::size_t>(at_row)];
        row.clear();
        const std::size_t at = 3 * static_cast<std::size_t>(i);
        const int own = home[static_cast<std::size_t>(i)];
        const int b[3] = {own / (bins[1] * bins[2]), own / bins[2] % bins[1], own % bins[2]};
        int step[3];
        for (step[0] = -span[0]; step[0] <= span[0]; ++step[0])
          for (step[1] = -span[1]; step[1] <= span[1]; ++step[1])
            for (step[2] = -span[2]; step[2] <= span[2]; ++step[2]) {
              int target[3], image[3];
              bool inside = true;
              for (int k = 0; k < 3; ++k) {
                target[k] = step_from(b[k], step[k], bins[k], image[k]);
                inside = inside && (s.periodic[k] || image[k] == 0);
              }
              if (!inside) continue;
              const std::size_t bin = static_cast<std::size_t>((target[0] * bins[1] + target[1]) * bins[2] + target[2]);
              for (int q = start[bin]; q < start[bin + 1]; ++q) {
                const int j = binned[static_cast<std::size_t>(q)];
                Entry entry{j, {0, 0, 0}};
                for (std::size_t k = 0; k < 3; ++k)
                  entry.s[k] = image[k] - wrap[3 * static_cast<std::size_t>(j) + k] + wrap[at + k];
                if (j == i && !entry.s[0] && !entry.s[1] && !entry.s[2]) continue;
                double shift[3], d[3];
                shift_vector(l.cell, entry.s, shift);
                pair_vector(s.positions + at, s.positions + 3 * static_cast<std::size_t>(j), shift, d);
                if (dot(d, d) < reach * reach) row.push_back(entry);
              }
            }
        std::sort(row.begin(), row.end(), before);
      }
    });
  }
  skin_first_.assign(static_cast<std::size_t>(n) + 1, 0);
  std::size_t total = 0;
  for (int i = 0; i < n; ++i) {
    total += rows_[static_cast<std::size_t>(i)].size();
    if (total > static_cast<std::size_t>(INT_MAX) / 4) throw InputError("the structure has more than half a billion neighbour pairs");
    skin_first_[static_cast<std::size_t>(i) + 1] = static_cast<int>(total);
  }
  entries_.resize(total);
  for (int i = 0; i < n; ++i)
    std::transform(rows_[static_cast<std::size_t>(i)].begin(), rows_[static_cast<std::size_t>(i)].end(),
                   entries_.begin() + skin_first_[static_cast<std::size_t>(i)], [&](Entry e) {
                     e.j = row_of_[static_cast<std::size_t>(e.j)];
                     return e;
                   });
  built_positions_.assign(s.positions, s.positions + 3 * static_cast<std::size_t>(s.atoms + s.ghosts));
  built_on_host_ = s.pairs != nullptr;
  if (s.pairs) built_version_ = s.pairs->version;
  built_periodic_.assign(s.periodic, s.periodic + 3);
  built_cell_.assign(9, 0.0);
  for (long k = 0; k < 3; ++k)
    if (s.periodic[k]) std::copy_n(s.cell + 3 * k, 3, built_cell_.begin() + 3 * k);
  ++rebuilds_;
}

void SkinList::update(const Structure& s, double closest, Pool& pool) {
  for (int k = 0; k < 3 * (s.atoms + s.ghosts); ++k)
    if (!std::isfinite(s.positions[k])) throw InputError("the position of atom " + std::to_string(k / 3) + " is not finite");
  if (stale(s)) build(s, pool);

  const int n = s.atoms;
  ordered_positions_.resize(3 * order_.size());
  for (std::size_t row = 0; row < order_.size(); ++row) std::copy_n(s.positions + 3 * static_cast<std::size_t>(order_[row]), 3, ordered_positions_.begin() + 3 * static_cast<long>(row));
  const double* positions = ordered_positions_.data();
  const auto each_close_pair = [&](int i, const auto& body) {
    for (int q = skin_first_[static_cast<std::size_t>(i)]; q < skin_first_[static_cast<std::size_t>(i) + 1]; ++q) {
      const Entry& e = entries_[static_cast<std::size_t>(q)];
      double shift[3] = {0, 0, 0}, d[3];
      if (e.s[0] || e.s[1] || e.s[2]) shift_vector(built_cell_.data(), e.s, shift);
      pair_vector(positions + 3 * static_cast<std::size_t>(i), positions + 3 * static_cast<std::size_t>(e.j), shift, d);
      const double square = dot(d, d);
      if (square < cutoff_ * cutoff_) body(e, d, square);
    }
  };
  first_.assign(static_cast<std::size_t>(n) + 1, 0);
  pool.loop(n, 32, [&](int begin, int end, int) {
    for (int i = begin; i < end; ++i) each_close_pair(i, [&](const Entry&, const double*, double) { ++first_[static_cast<std::size_t>(i) + 1]; });
  });
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) first_[i + 1] += first_[i];
  const std::size_t pairs = static_cast<std::size_t>(first_.back());
  j_.resize(pairs), shift_.resize(3 * pairs), vector_.resize(3 * pairs), distance_.resize(pairs);
  half_.resize(static_cast<std::size_t>(n));
  std::atomic<int> too_close{INT_MAX};
  pool.loop(n, 32, [&](int begin, int end, int) {
    for (int i = begin; i < end; ++i) {
      std::size_t p = static_cast<std::size_t>(first_[static_cast<std::size_t>(i)]);
      half_[static_cast<std::size_t>(i)] = static_cast<int>(p);
      each_close_pair(i, [&](const Entry& e, const double* d, double square) {
        const Entry own{order_[static_cast<std::size_t>(i)], {0, 0, 0}}, other{order_[static_cast<std::size_t>(e.j)], {e.s[0], e.s[1], e.s[2]}};
        if (before(other, own)) ++half_[static_cast<std::size_t>(i)];
        j_[p] = e.j;
        std::copy_n(e.s, 3, shift_.begin() + 3 * static_cast<long>(p));
        std::copy_n(d, 3, vector_.begin() + 3 * static_cast<long>(p));
        distance_[p] = std::sqrt(square);
        if (distance_[p] < closest) {
          int seen = too_close.load();
          while (own.j < seen && !too_close.compare_exchange_weak(seen, own.j)) {}
        }
        ++p;
      });
    }
  });
  if (const int i = too_close.load(); i != INT_MAX)
    for (std::size_t p = static_cast<std::size_t>(first_[static_cast<std::size_t>(row_of_[static_cast<std::size_t>(i)])]);; ++p)
      if (distance_[p] < closest) {
        char text[160];
        std::snprintf(text, sizeof text, "atoms %d and %d overlap: they are %.3f Å apart, and the model holds from %.1f Å up", i,
                      order_[static_cast<std::size_t>(j_[p])], distance_[p], closest);
        throw InputError(text);
      }
}

NeighborList neighbor_list(const Structure& structure, double cutoff) {
  if (!(cutoff > 0.0) || !std::isfinite(cutoff)) throw InputError("the cutoff must be a positive length");
  Pool pool(1);
  SkinList list(cutoff, 0.0);
  list.update(structure, 0.0, pool);
  NeighborList out;
  for (int i = 0; i < structure.atoms; ++i) {
    const std::size_t row = static_cast<std::size_t>(list.row_of()[static_cast<std::size_t>(i)]);
    for (std::size_t p = static_cast<std::size_t>(list.first()[row]); p < static_cast<std::size_t>(list.first()[row + 1]); ++p) {
      out.i.push_back(i);
      out.j.push_back(list.order()[static_cast<std::size_t>(list.neighbors()[p])]);
      out.shifts.insert(out.shifts.end(), list.shifts().begin() + 3 * static_cast<long>(p), list.shifts().begin() + 3 * static_cast<long>(p) + 3);
      out.vectors.insert(out.vectors.end(), list.vectors().begin() + 3 * static_cast<long>(p), list.vectors().begin() + 3 * static_cast<long>(p) + 3);
    }
  }
  return out;
}

}  // namespace mfmd
