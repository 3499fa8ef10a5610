// The table of one instruction set.
#include "simd.hpp"

#define MFMD_TEXT_(x) #x
#define MFMD_TEXT(x) MFMD_TEXT_(x)

namespace mfmd {
namespace MFMD_ISA {

template <class T> const Stages<T>& table() {
  static const Stages<T> stages = {MFMD_TEXT(MFMD_ISA),
                                   embedding_gather<T>, embedding_mix<T>, mixing<T>, message<T>, own_message<T>, product<T>, readout<T>,
                                   product_reverse<T>, message_reverse<T>, own_message_reverse<T>, mixing_reverse<T>, embedding_mix_reverse<T>,
                                   embedding_gather_reverse<T>, training_maps<T>()};
  return stages;
}
template const Stages<float>& table<float>();
template const Stages<double>& table<double>();

}  // namespace MFMD_ISA
}  // namespace mfmd
