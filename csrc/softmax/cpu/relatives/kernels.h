// The CPU kernels of the relatives, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "softmax/relatives.h"

namespace fastops::softmax::cpu {

#define FASTOPS_RELATIVES(isa)         \
  namespace isa {                      \
  void map_forward(const MapParams&);  \
  void map_backward(const MapParams&); \
  void topk(const TopkParams&);        \
  }
FASTOPS_RELATIVES(portable)
FASTOPS_RELATIVES(avx2)
FASTOPS_RELATIVES(avx512)
#undef FASTOPS_RELATIVES

template <typename S>
struct Scored {
  S score;
  int64_t index;
};

// Brings the k first of `count` candidates to the front, in order: greatest score, ties by lowest
// index. In select.cpp, once for all instruction sets.
void select_first(Scored<float>* candidates, int64_t count, int64_t k);
void select_first(Scored<double>* candidates, int64_t count, int64_t k);

}  // namespace fastops::softmax::cpu
