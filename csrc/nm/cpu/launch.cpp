// Picks the kernel: the instruction set once, the packing per call.
#include "core/check.h"
#include "cpu/isa.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"

namespace fastops::nm::cpu {

const Kernels& kernels() {
#define FASTOPS_TABLE(isa) \
  Kernels { isa::lanes, isa::pitch, isa::stream_matmul, isa::panel_matmul, isa::weight_grad }
  static const Kernels chosen = [] {
    switch (fastops::cpu::active_isa()) {
#ifdef FASTOPS_HAS_AVX512
      case fastops::cpu::Isa::avx512: return FASTOPS_TABLE(avx512);
#endif
#ifdef FASTOPS_HAS_AVX2
      case fastops::cpu::Isa::avx2: return FASTOPS_TABLE(avx2);
#endif
      default: return FASTOPS_TABLE(portable);
    }
  }();
#undef FASTOPS_TABLE
  return chosen;
}

Kind choose_kind(const Weight&, DType, int64_t rows, bool transposed) {
  return plan(rows, transposed);
}

void matmul(const MatmulParams& p) {
  switch (p.kind) {
    case Kind::stream: return kernels().stream_matmul(p);
    case Kind::panels:
    case Kind::panels_transposed: return kernels().panel_matmul(p);
    default: fail("fastops._nm_matmul: no such packing on the CPU");
  }
}

void weight_grad(const WeightGradParams& p) { kernels().weight_grad(p); }

}  // namespace fastops::nm::cpu
