// Neighbour pairs (i, j, S): D = R[j] - R[i] + S @ cell, as in ASE. The lattice arithmetic is shared with the CUDA twin.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../mfmd.hpp"
#include "../threads.hpp"
#include "entries.hpp"
#include "lattice.hpp"

namespace mfmd {

Lattice lattice(const double* cell, const bool periodic[3]);  // InputError for a flat cell

// All pairs within the cutoff plus a skin, reused until an atom has moved half the skin, or the cell or the host's list has changed;
// compacted every step to d < cutoff in (j, S) order within the row of an atom, so that its age never shows in a sum.
// Rows are stored along a curve through space, so that atoms near in space are near in memory: `order` says which atom a row
// belongs to, and neighbours are named by row. A host's own pairs stay as the host has them.
class SkinList {
 public:
  SkinList(double cutoff, double skin) : cutoff_(cutoff), skin_width_(skin) {}

  // Brings the list up to date; afterwards rows, neighbours and vectors are those of `s`. InputError for atoms closer
  // than `closest` (Å).
  void update(const Structure& s, double closest, Pool& pool);

  std::int64_t rebuilds() const { return rebuilds_; }
  const std::vector<int>& order() const { return order_; }          // [rows], the atom (or ghost) of a row
  const std::vector<int>& row_of() const { return row_of_; }        // [atoms + ghosts]
  const std::vector<int>& first() const { return first_; }          // [rows + 1]
  const std::vector<int>& half() const { return half_; }            // [rows], where in the row (j, S) > (i, 0) begins, in atoms
  const std::vector<int>& neighbors() const { return j_; }          // [pairs], rows
  const std::vector<double>& vectors() const { return vector_; }    // [pairs][3]
  const std::vector<double>& distances() const { return distance_; }  // [pairs]
  const int* shift(int row, int k) const;                           // [3], S of the k-th pair of a row

 private:
  struct Neighbor {
    int j, shift;  // a row, and which of the list's shifts
  };
  // Rows of one bin, and what is found around them.
  struct Piece {
    int begin, end, bin;
    std::vector<Neighbor> entries;  // j: an atom; shift: one of the piece's
    std::vector<int> shifts;        // [shifts][3]
  };
  struct Bins;
  struct Candidates;

  bool stale(const Structure& s) const;
  void build(const Structure& s, Pool& pool);
  std::vector<Piece> pieces_of_host(const Structure& s, Pool& pool);
  std::vector<Piece> pieces_of_bins(const Structure& s, Pool& pool);
  int search(const Structure& s, const Bins& bins, Piece& piece, Candidates& candidates);
  void join(const std::vector<Piece>& pieces, Pool& pool);

  const double cutoff_, skin_width_;
  std::int64_t rebuilds_ = 0, built_version_ = 0;
  std::vector<double> built_positions_, built_cell_, ordered_positions_;
  std::vector<bool> built_periodic_;
  bool built_on_host_ = false;
  std::vector<int> skin_first_, skin_half_;  // as first and half, of the entries
  std::vector<Neighbor> entries_, close_;    // within cutoff and skin; those within the cutoff, from where a row's entries begin
  std::vector<int> shifts_;                  // [shifts][3], cells away
  std::vector<double> shift_vectors_;        // [shifts][3], Å
  std::vector<int> order_, row_of_, first_, half_, j_;
  std::vector<double> vector_, distance_;
};

}  // namespace mfmd
