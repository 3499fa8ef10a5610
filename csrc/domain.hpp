// What a model was trained on, and the sentence for a structure that is far outside of it.
#pragma once

#include <vector>

#include "archive.hpp"
#include "kernels/domain.hpp"
#include "mfmd.hpp"

namespace mfmd {

struct TrainedOn {
  std::vector<double> nearest;
  std::vector<int> neighbors;
  std::vector<float> low, high, per;
  Domain view;  // of the arrays above
};

// From the tensors domain.nearest [slots][slots], domain.neighbors [slots][2] and domain.features [slots][2][F] of a model file.
// ModelFileError for a range that is none.
TrainedOn trained_on(const std::vector<double>& nearest, const std::vector<double>& neighbors, const std::vector<double>& features, int slots, int F, double cutoff,
                     const std::string& origin);

// The worst of a structure's atoms, from excess[row] of the rows of atoms; `first`: which atom `other` counts from.
Outside outside(const Model& model, const Structure& s, const std::vector<Excess>& excess, const int* row_of, int first);

}  // namespace mfmd
