// The CPU kernels of the family. Each is compiled once per instruction set, in a namespace of that
// name; launch.cpp picks the set once.
#pragma once

#include "nm/nm.h"

namespace fastops::nm::cpu {

// stream_matmul: lanes are outputs, weights are read once; panel_matmul: lanes are rows;
// pair_matmul: bf16 pairs, AVX-512 alone
#define FASTOPS_NM_KERNELS(isa)                \
  namespace isa {                              \
  extern const int lanes, pitch;               \
  void stream_matmul(const MatmulParams& p);   \
  void panel_matmul(const MatmulParams& p);    \
  void weight_grad(const WeightGradParams& p); \
  }
FASTOPS_NM_KERNELS(portable)
FASTOPS_NM_KERNELS(avx2)
FASTOPS_NM_KERNELS(avx512)
#undef FASTOPS_NM_KERNELS
namespace avx512 {
void pair_matmul(const MatmulParams& p);
}

struct Kernels {
  int lanes;  // of VecF32
  int pitch;  // bytes between the packed features of a panel
  void (*stream_matmul)(const MatmulParams&);
  void (*panel_matmul)(const MatmulParams&);
  void (*weight_grad)(const WeightGradParams&);
  void (*pair_matmul)(const MatmulParams&) = nullptr;
};

// How many bytes ahead a stream of weights for so many rows is fetched.
int64_t stream_ahead(int64_t rows);

// Whether the CPU loads one whole vector a cycle, as AMD's Zen 4, or two.
bool one_load_a_cycle();

// Those of fastops::cpu::active_isa().
const Kernels& kernels();

}  // namespace fastops::nm::cpu
