#include "neighbors.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <cstdio>
#include <numeric>
#include <unordered_map>

namespace mfmd {

namespace {

constexpr int kGrain = 32;  // rows that are worth a thread
constexpr int kPiece = 64;  // rows that are built together, at most
constexpr std::size_t kMostCandidates = 1000000;  // atoms and their images that are looked at around one bin

using Cells = std::array<int, 3>;  // how many away
struct HashOfCells {
  std::size_t operator()(const Cells& s) const {
    std::uint64_t hash = 0;
    for (const int k : s) hash = (hash ^ static_cast<std::uint32_t>(k)) * 0x9e3779b97f4a7c15;
    return hash >> 32;
  }
};

// Position along a Z curve (Morton 1966) through cells of a grid: the bits of the three coordinates interleaved.
std::uint64_t along_curve(const unsigned cell[3]) {
  std::uint64_t key = 0;
  for (unsigned bit = 0; bit < 20; ++bit)
    for (unsigned k = 0; k < 3; ++k) key |= static_cast<std::uint64_t>(cell[k] >> bit & 1u) << (3 * bit + k);
  return key;
}

void refuse_crowded(int atom) {
  if (atom < 0) return;
  throw InputError("atom " + std::to_string(atom) + " has more than " + std::to_string(kMostNeighbors) + " neighbours; are positions and cell in Å?");
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

// Atoms in bins, at least as wide as the reach where the cell allows it; `span` of them to look at on either side.
struct SkinList::Bins {
  Lattice l;
  int count[3], span[3];
  std::vector<int> wrap;         // [atoms][3], how many cells an atom is away from the first
  std::vector<int> home;         // [atoms]
  std::vector<int> first, last;  // [bins], their rows

  Bins(const Structure& s, double reach) : l(lattice(s.cell, s.periodic)), wrap(3 * static_cast<std::size_t>(s.atoms), 0), home(static_cast<std::size_t>(s.atoms), 0) {
    if (too_many_within(l, reach)) {
      char text[120];
      std::snprintf(text, sizeof text, "the cell is flat, or not in Å: %.3g cells like it are within %.1f Å of one", cells_within(l, reach), reach);
      throw InputError(text);
    }
    // Fractional coordinates, wrapped along periodic directions: they lie in [low, low + extent].
    std::vector<double> frac(wrap.size());
    double low[3] = {0, 0, 0}, high[3] = {1, 1, 1}, extent[3];
    for (int k = 0; k < 3; ++k)
      if (!l.periodic[k]) low[k] = HUGE_VAL, high[k] = -HUGE_VAL;
    for (std::size_t i = 0; i < home.size(); ++i)
      for (std::size_t k = 0; k < 3; ++k) {
        const double* r = s.positions + 3 * i;
        double f = r[0] * l.inverse[k] + r[1] * l.inverse[3 + k] + r[2] * l.inverse[6 + k];
        if (l.periodic[k]) {
          const double turns = std::floor(f);
          if (std::fabs(turns) > 1e8) throw InputError("atom " + std::to_string(i) + " is more than 1e8 cells away from the origin; wrap the positions");
          wrap[3 * i + k] = static_cast<int>(turns);
          f -= turns;
        } else {
          low[k] = std::min(low[k], f);
          high[k] = std::max(high[k], f);
        }
        frac[3 * i + k] = f;
      }
    for (int k = 0; k < 3; ++k) {
      extent[k] = l.periodic[k] ? 1.0 : high[k] - low[k];
      count[k] = static_cast<int>(std::min(1024.0, std::max(1.0, std::floor(extent[k] * l.height[k] / reach))));
    }
    while (static_cast<double>(count[0]) * count[1] * count[2] > 8.0 + s.atoms) {  // a sparse box needs no more bins than atoms
      int* most = std::max_element(count, count + 3);
      *most = (*most + 1) / 2;
    }
    for (int k = 0; k < 3; ++k)
      span[k] = !l.periodic[k] && count[k] == 1 ? 0 : 1 + static_cast<int>(reach * count[k] / (extent[k] * l.height[k]) * (1 + 1e-12));
    for (std::size_t i = 0; i < home.size(); ++i)
      for (std::size_t k = 0; k < 3; ++k) {
        const double f = extent[k] > 0.0 ? (frac[3 * i + k] - low[k]) / extent[k] : 0.0;
        home[i] = home[i] * count[k] + std::min(count[k] - 1, static_cast<int>(f * count[k]));
      }
  }

  const int* wrap_of(int atom) const { return wrap.data() + 3 * static_cast<std::size_t>(atom); }

  // Rows bin by bin along the curve, in a bin by how many cells away they are. order: the atoms by number before.
  void sort(std::vector<int>& order) {
    std::vector<std::pair<std::uint64_t, std::size_t>> curve;
    for (unsigned x = 0; x < static_cast<unsigned>(count[0]); ++x)
      for (unsigned y = 0; y < static_cast<unsigned>(count[1]); ++y)
        for (unsigned z = 0; z < static_cast<unsigned>(count[2]); ++z) {
          const unsigned cell[3] = {x, y, z};
          curve.emplace_back(along_curve(cell), curve.size());
        }
    std::sort(curve.begin(), curve.end());
    std::vector<int> atoms = order, size(curve.size(), 0);
    std::stable_sort(atoms.begin(), atoms.end(),
                     [&](int a, int b) { return std::lexicographical_compare(wrap_of(a), wrap_of(a) + 3, wrap_of(b), wrap_of(b) + 3); });
    for (const int bin : home) ++size[static_cast<std::size_t>(bin)];
    first.resize(curve.size());
    int rows = 0;
    for (const auto& [key, bin] : curve) {
      first[bin] = rows;
      rows += size[bin];
    }
    last = first;
    for (const int i : atoms) order[static_cast<std::size_t>(last[static_cast<std::size_t>(home[static_cast<std::size_t>(i)])]++)] = i;
  }

  // InputError for more candidates around a bin than there is memory for.
  void check() const {
    int largest = 0;
    for (std::size_t bin = 0; bin < first.size(); ++bin) largest = std::max(largest, last[bin] - first[bin]);
    if (static_cast<double>(largest) * (2 * span[0] + 1) * (2 * span[1] + 1) * (2 * span[2] + 1) <= static_cast<double>(kMostCandidates)) return;
    for (std::size_t bin = 0; bin < first.size(); ++bin) {
      std::size_t candidates = 0;
      if (last[bin] > first[bin]) around(static_cast<int>(bin), [&](std::size_t there, const int*) { candidates += static_cast<std::size_t>(last[there] - first[there]); });
      if (candidates > kMostCandidates) throw InputError("there may be " + std::to_string(candidates) + " atoms near one; are positions and cell in Å?");
    }
  }

  // body(bin, image) for those around a bin; where one is met in several images, in their order.
  template <class Body> void around(int bin, const Body& body) const {
    const int from[3] = {bin / (count[1] * count[2]), bin / count[2] % count[1], bin % count[2]};
    int step[3];
    for (step[0] = -span[0]; step[0] <= span[0]; ++step[0])
      for (step[1] = -span[1]; step[1] <= span[1]; ++step[1])
        for (step[2] = -span[2]; step[2] <= span[2]; ++step[2]) {
          int to = 0, image[3];
          bool inside = true;
          for (int k = 0; k < 3; ++k) {
            to = to * count[k] + step_from(from[k], step[k], count[k], image[k]);
            inside = inside && (l.periodic[k] || image[k] == 0);
          }
          if (inside) body(static_cast<std::size_t>(to), image);
        }
  }
};

// What may be near the rows of a piece; of one worker.
struct SkinList::Candidates {
  std::vector<Neighbor> all, other, near;  // shift: one of `cells`
  std::vector<int> cells, from_row;        // [shifts][3], how many cells away: from the first, from a row
  std::vector<int> number;                 // [shifts], among those of the piece, or -1
  std::vector<double> position[3], shift[3], square;

  // All around a bin, sorted by (j, S).
  void collect(const double* positions, const Bins& bins, const std::vector<int>& order, int bin) {
    all.clear(), cells.clear();
    bins.around(bin, [&](std::size_t there, const int image[3]) {
      for (int row = bins.first[there]; row < bins.last[there]; ++row) {
        const int j = order[static_cast<std::size_t>(row)], *wrap = bins.wrap_of(j);
        const int cell[3] = {image[0] - wrap[0], image[1] - wrap[1], image[2] - wrap[2]};
        if (cells.empty() || !std::equal(cell, cell + 3, cells.end() - 3)) cells.insert(cells.end(), cell, cell + 3);
        all.push_back({j, static_cast<int>(cells.size() / 3) - 1});
      }
    });
    other.resize(all.size()), near.resize(all.size()), square.resize(all.size());
    for (int bit = 0; bit < 32 && static_cast<int>(bins.home.size()) >> bit; bit += 8) {  // those of one j are in order, and stay so
      int place[257] = {};
      for (const Neighbor& c : all) ++place[(c.j >> bit & 255) + 1];
      for (int k = 0; k < 256; ++k) place[k + 1] += place[k];
      for (const Neighbor& c : all) other[static_cast<std::size_t>(place[c.j >> bit & 255]++)] = c;
      all.swap(other);
    }
    for (std::size_t a = 0; a < 3; ++a) {
      position[a].resize(all.size()), shift[a].resize(all.size());
      for (std::size_t c = 0; c < all.size(); ++c) position[a][c] = positions[3 * static_cast<std::size_t>(all[c].j) + a];
    }
  }
  // As a row sees them that is so many cells away.
  void look_from(const int* wrap, const double* cell) {
    from_row.resize(cells.size());
    number.assign(cells.size() / 3, -1);
    std::vector<double> vectors(cells.size());
    for (std::size_t k = 0; k < cells.size(); k += 3) {
      for (std::size_t a = 0; a < 3; ++a) from_row[k + a] = cells[k + a] + wrap[a];
      shift_vector(cell, from_row.data() + k, vectors.data() + k);
    }
    for (std::size_t a = 0; a < 3; ++a)
      for (std::size_t c = 0; c < all.size(); ++c) shift[a][c] = vectors[3 * static_cast<std::size_t>(all[c].shift) + a];
  }
  // The squares of pair_vector.
  void measure(const double* r) {
    const double *x = position[0].data(), *y = position[1].data(), *z = position[2].data();
    const double *sx = shift[0].data(), *sy = shift[1].data(), *sz = shift[2].data();
    double* out = square.data();
    for (std::size_t c = 0; c < all.size(); ++c) {
      const double d[3] = {(x[c] - r[0]) + sx[c], (y[c] - r[1]) + sy[c], (z[c] - r[2]) + sz[c]};
      out[c] = dot(d, d);
    }
  }
  // Where the atom of the row itself is.
  std::ptrdiff_t place_of(int atom) const {
    return std::lower_bound(all.begin(), all.end(), Entry{atom, {0, 0, 0}}, [&](const Neighbor& c, const Entry& own) {
      const int* s = from_row.data() + 3 * static_cast<std::size_t>(c.shift);
      return before({c.j, {s[0], s[1], s[2]}}, own);
    }) - all.begin();
  }
};

int SkinList::search(const Structure& s, const Bins& bins, Piece& piece, Candidates& candidates) {
  candidates.collect(s.positions, bins, order_, piece.bin);
  const double reach = cutoff_ + skin_width_;
  const int* wrap = nullptr;
  for (int row = piece.begin; row < piece.end; ++row) {
    const int i = order_[static_cast<std::size_t>(row)], *own = bins.wrap_of(i);
    if (!wrap || !std::equal(own, own + 3, wrap)) candidates.look_from(wrap = own, bins.l.cell);
    candidates.measure(s.positions + 3 * static_cast<std::size_t>(i));
    Neighbor* const near = candidates.near.data();
    int found = 0;
    const auto keep = [&, from = candidates.all.data(), square = candidates.square.data()](std::ptrdiff_t begin, std::ptrdiff_t end) {
      for (std::ptrdiff_t c = begin; c < end; ++c) {
        near[found] = from[c];
        found += square[c] < reach * reach;
      }
    };
    const std::ptrdiff_t self = candidates.place_of(i);
    keep(0, self);
    skin_half_[static_cast<std::size_t>(row)] = found;
    keep(self + 1, static_cast<std::ptrdiff_t>(candidates.all.size()));
    if (found > kMostNeighbors) return i;
    skin_first_[static_cast<std::size_t>(row) + 1] = found;
    for (Neighbor* e = near; e < near + found; ++e) {
      const std::size_t shift = static_cast<std::size_t>(e->shift);
      if (candidates.number[shift] < 0) {
        candidates.number[shift] = static_cast<int>(piece.shifts.size() / 3);
        piece.shifts.insert(piece.shifts.end(), candidates.from_row.data() + 3 * shift, candidates.from_row.data() + 3 * shift + 3);
      }
      e->shift = candidates.number[shift];
    }
    piece.entries.insert(piece.entries.end(), near, near + found);
  }
  return -1;
}

std::vector<SkinList::Piece> SkinList::pieces_of_bins(const Structure& s, Pool& pool) {
  Bins bins(s, cutoff_ + skin_width_);
  bins.sort(order_);
  bins.check();
  std::vector<Piece> pieces;
  for (int row = 0; row < s.atoms; row = pieces.back().end) {
    const int bin = bins.home[static_cast<std::size_t>(order_[static_cast<std::size_t>(row)])];
    pieces.push_back({row, std::min(bins.last[static_cast<std::size_t>(bin)], row + kPiece), bin, {}, {}});
  }
  std::vector<Candidates> candidates(static_cast<std::size_t>(pool.threads()));
  std::atomic<int> crowded{-1};
  pool.loop(static_cast<int>(pieces.size()), 1, [&](int at, int, int worker) {
    if (crowded >= 0) return;
    if (const int atom = search(s, bins, pieces[static_cast<std::size_t>(at)], candidates[static_cast<std::size_t>(worker)]); atom >= 0) crowded = atom;
  });
  refuse_crowded(crowded);
  return pieces;
}

std::vector<SkinList::Piece> SkinList::pieces_of_host(const Structure& s, Pool& pool) {
  std::vector<Piece> pieces;
  for (int row = 0; row < s.atoms; row += kPiece) pieces.push_back({row, std::min(row + kPiece, s.atoms), 0, {}, {0, 0, 0}});
  const double square = (cutoff_ + skin_width_) * (cutoff_ + skin_width_);
  std::atomic<int> crowded{-1};
  pool.loop(static_cast<int>(pieces.size()), 1, [&](int at, int, int) {
    Piece& piece = pieces[static_cast<std::size_t>(at)];
    std::vector<int> row;
    for (int i = piece.begin; i < piece.end; ++i) {
      row.clear();
      for (int p = s.pairs->first[i]; p < s.pairs->first[i + 1]; ++p) {
        const double *a = s.positions + 3 * static_cast<std::size_t>(i), *b = s.positions + 3 * static_cast<std::size_t>(s.pairs->j[p]);
        const double d[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
        if (dot(d, d) < square) row.push_back(s.pairs->j[p]);
      }
      if (row.size() > kMostNeighbors) crowded = i;
      std::sort(row.begin(), row.end());
      skin_half_[static_cast<std::size_t>(i)] = static_cast<int>(std::lower_bound(row.begin(), row.end(), i) - row.begin());
      skin_first_[static_cast<std::size_t>(i) + 1] = static_cast<int>(row.size());
      for (const int j : row) piece.entries.push_back({j, 0});
    }
  });
  refuse_crowded(crowded);
  return pieces;
}

// What the pieces have, one behind the other.
void SkinList::join(const std::vector<Piece>& pieces, Pool& pool) {
  skin_first_[0] = 0;
  for (std::size_t row = 0; row < skin_half_.size(); ++row) {
    skin_half_[row] += skin_first_[row];
    if (skin_first_[row + 1] > INT_MAX / 4 - skin_first_[row]) throw InputError("the structure has more than half a billion neighbour pairs");
    skin_first_[row + 1] += skin_first_[row];
  }
  entries_.resize(static_cast<std::size_t>(skin_first_.back()));
  close_.resize(entries_.size());
  shifts_.clear();
  std::unordered_map<Cells, int, HashOfCells> known;
  std::vector<int> first_shift, number;  // among all, of each of a piece's
  for (const Piece& piece : pieces) {
    first_shift.push_back(static_cast<int>(number.size()));
    for (std::size_t k = 0; k < piece.shifts.size(); k += 3) {
      const auto [shift, is_new] = known.try_emplace({piece.shifts[k], piece.shifts[k + 1], piece.shifts[k + 2]}, static_cast<int>(known.size()));
      if (is_new) shifts_.insert(shifts_.end(), shift->first.begin(), shift->first.end());
      number.push_back(shift->second);
    }
  }
  pool.loop(static_cast<int>(pieces.size()), 1, [&](int at, int, int) {
    const Piece& piece = pieces[static_cast<std::size_t>(at)];
    const int* shift = number.data() + first_shift[static_cast<std::size_t>(at)];
    std::transform(piece.entries.begin(), piece.entries.end(), entries_.begin() + skin_first_[static_cast<std::size_t>(piece.begin)],
                   [&](Neighbor e) { return Neighbor{row_of_[static_cast<std::size_t>(e.j)], shift[e.shift]}; });
  });
}

void SkinList::build(const Structure& s, Pool& pool) {
  built_positions_.clear();  // a structure that is refused below leaves no list
  order_.resize(static_cast<std::size_t>(s.atoms + s.ghosts));
  std::iota(order_.begin(), order_.end(), 0);
  skin_first_.resize(static_cast<std::size_t>(s.atoms) + 1);
  skin_half_.resize(static_cast<std::size_t>(s.atoms));
  const std::vector<Piece> pieces = s.pairs ? pieces_of_host(s, pool) : pieces_of_bins(s, pool);
  row_of_.resize(order_.size());
  for (std::size_t row = 0; row < order_.size(); ++row) row_of_[static_cast<std::size_t>(order_[row])] = static_cast<int>(row);
  join(pieces, pool);
  built_positions_.assign(s.positions, s.positions + 3 * static_cast<std::size_t>(s.atoms + s.ghosts));
  built_on_host_ = s.pairs != nullptr;
  if (s.pairs) built_version_ = s.pairs->version;
  built_periodic_.assign(s.periodic, s.periodic + 3);
  built_cell_.assign(9, 0.0);
  for (long k = 0; k < 3 && !s.pairs; ++k)
    if (s.periodic[k]) std::copy_n(s.cell + 3 * k, 3, built_cell_.begin() + 3 * k);
  shift_vectors_.resize(shifts_.size());
  for (std::size_t k = 0; k < shifts_.size(); k += 3) shift_vector(built_cell_.data(), shifts_.data() + k, shift_vectors_.data() + k);
  ++rebuilds_;
}

void SkinList::update(const Structure& s, double closest, Pool& pool) {
  for (int k = 0; k < 3 * (s.atoms + s.ghosts); ++k)
    if (!std::isfinite(s.positions[k])) throw InputError("the position of atom " + std::to_string(k / 3) + " is not finite");
  if (stale(s)) build(s, pool);

  ordered_positions_.resize(3 * order_.size());
  for (std::size_t row = 0; row < order_.size(); ++row) std::copy_n(s.positions + 3 * static_cast<std::size_t>(order_[row]), 3, ordered_positions_.begin() + 3 * static_cast<long>(row));
  const double *positions = ordered_positions_.data(), *shifts = shift_vectors_.data(), square = cutoff_ * cutoff_;
  const auto vector = [=](const double* ri, const Neighbor& e, double* d) {
    pair_vector(ri, positions + 3 * static_cast<std::size_t>(e.j), shifts + 3 * static_cast<std::size_t>(e.shift), d);
  };
  first_.resize(skin_first_.size()), half_.resize(skin_half_.size());
  first_[0] = 0;
  pool.loop(s.atoms, kGrain, [&](int begin, int end, int) {
    for (std::size_t row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
      const double* ri = positions + 3 * row;
      const Neighbor* e = entries_.data();
      Neighbor* close = close_.data() + skin_first_[row];
      int found = 0;
      const auto keep = [&](int from, int to) {
        for (int q = from; q < to; ++q) {
          double d[3];
          vector(ri, e[q], d);
          close[found] = e[q];
          found += dot(d, d) < square;
        }
      };
      keep(skin_first_[row], skin_half_[row]);
      half_[row] = found;
      keep(skin_half_[row], skin_first_[row + 1]);
      first_[row + 1] = found;
    }
  });
  for (std::size_t row = 0; row < half_.size(); ++row) {
    half_[row] += first_[row];
    first_[row + 1] += first_[row];
  }
  const std::size_t pairs = static_cast<std::size_t>(first_.back());
  j_.resize(pairs), vector_.resize(3 * pairs), distance_.resize(pairs);
  std::atomic<bool> overlap{false};
  pool.loop(s.atoms, kGrain, [&](int begin, int end, int) {
    double nearest = HUGE_VAL;
    for (std::size_t row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
      const Neighbor* close = close_.data() + skin_first_[row];
      for (std::size_t p = static_cast<std::size_t>(first_[row]); p < static_cast<std::size_t>(first_[row + 1]); ++p, ++close) {
        double* d = vector_.data() + 3 * p;
        vector(positions + 3 * row, *close, d);
        j_[p] = close->j;
        distance_[p] = std::sqrt(dot(d, d));
        nearest = std::min(nearest, distance_[p]);
      }
    }
    if (nearest < closest) overlap = true;
  });
  if (!overlap) return;
  for (int i = 0; i < s.atoms; ++i) {
    const std::size_t row = static_cast<std::size_t>(row_of_[static_cast<std::size_t>(i)]);
    for (std::size_t p = static_cast<std::size_t>(first_[row]); p < static_cast<std::size_t>(first_[row + 1]); ++p)
      if (distance_[p] < closest) {
        char text[160];
        std::snprintf(text, sizeof text, "atoms %d and %d overlap: they are %.3f Å apart, and the model holds from %.1f Å up", i,
                      order_[static_cast<std::size_t>(j_[p])], distance_[p], closest);
        throw InputError(text);
      }
  }
}

const int* SkinList::shift(int row, int k) const {
  return shifts_.data() + 3 * close_[static_cast<std::size_t>(skin_first_[static_cast<std::size_t>(row)] + k)].shift;
}

NeighborList neighbor_list(const Structure& structure, double cutoff) {
  if (!(cutoff > 0.0) || !std::isfinite(cutoff)) throw InputError("the cutoff must be a positive length");
  Pool pool(1);
  SkinList list(cutoff, 0.0);
  list.update(structure, 0.0, pool);
  NeighborList out;
  for (int i = 0; i < structure.atoms; ++i) {
    const int row = list.row_of()[static_cast<std::size_t>(i)], first = list.first()[static_cast<std::size_t>(row)];
    for (int p = first; p < list.first()[static_cast<std::size_t>(row) + 1]; ++p) {
      out.i.push_back(i);
      out.j.push_back(list.order()[static_cast<std::size_t>(list.neighbors()[static_cast<std::size_t>(p)])]);
      out.shifts.insert(out.shifts.end(), list.shift(row, p - first), list.shift(row, p - first) + 3);
      out.vectors.insert(out.vectors.end(), list.vectors().begin() + 3 * static_cast<long>(p), list.vectors().begin() + 3 * static_cast<long>(p) + 3);
    }
  }
  return out;
}

}  // namespace mfmd
