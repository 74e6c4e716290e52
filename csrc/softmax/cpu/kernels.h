// The CPU kernels of the softmax family. Each is compiled once per instruction set, in a namespace
// of that name; launch.cpp picks the set once and the kernel by the layout of the operands.
#pragma once

#include "softmax/softmax.h"

namespace fastops::softmax::cpu {

// rows:    one reduced dim, contiguous in x and out (y, dy and dx)
// columns: softmax alone, rows that are neighbours in x and out
// tiles:   everything else, rows side by side
#define FASTOPS_SOFTMAX_KERNELS(isa)            \
  namespace isa {                               \
  void forward_rows(const ForwardParams& p);    \
  void forward_columns(const ForwardParams& p); \
  void forward_tiles(const ForwardParams& p);   \
  void backward_rows(const BackwardParams& p);  \
  void backward_tiles(const BackwardParams& p); \
  }
FASTOPS_SOFTMAX_KERNELS(portable)
FASTOPS_SOFTMAX_KERNELS(avx2)
FASTOPS_SOFTMAX_KERNELS(avx512)
#undef FASTOPS_SOFTMAX_KERNELS

struct Kernels {
  void (*forward_rows)(const ForwardParams&);
  void (*forward_columns)(const ForwardParams&);
  void (*forward_tiles)(const ForwardParams&);
  void (*backward_rows)(const BackwardParams&);
  void (*backward_tiles)(const BackwardParams&);
};

// Those of fastops::cpu::active_isa().
const Kernels& kernels();

}  // namespace fastops::softmax::cpu
