// Picks the kernel: the instruction set once, the packing per call.
#include "core/check.h"
#include "cpu/amx.h"
#include "cpu/isa.h"
#include "nm/cpu/amx.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"

namespace fastops::nm::cpu {

const Kernels& kernels() {
#define FASTOPS_TABLE(isa) \
  Kernels { isa::lanes, isa::pitch, isa::stream_matmul, isa::panel_matmul, isa::weight_grad }
  static const Kernels chosen = [] {
    Kernels k = FASTOPS_ACTIVE(FASTOPS_TABLE);
#ifdef FASTOPS_HAS_AVX512
    if (fastops::cpu::active_isa() == fastops::cpu::Isa::avx512)
      k.pair_matmul = avx512::pair_matmul;
#endif
    return k;
  }();
#undef FASTOPS_TABLE
  return chosen;
}

namespace {

Bf16 bf16_abilities() {
  Bf16 can;
  can.pairs = kernels().pair_matmul;
  can.fast_pairs = can.pairs && fastops::cpu::is_amd();
  can.amx = fastops::cpu::amx_available();
  return can;
}

}  // namespace

int64_t stream_ahead(int64_t rows) {
  if (!fastops::cpu::is_amd()) return kStreamAhead;
  return rows <= kReadRows ? 0 : kAmdStreamAhead;
}

bool one_load_a_cycle() { return fastops::cpu::is_amd(); }

Kind choose_kind(const Weight& weight, DType dtype, int64_t rows, bool transposed) {
  static const Bf16 bf16 = bf16_abilities();
  return plan(weight.pattern, rows, transposed, dtype == DType::bf16 ? bf16 : Bf16{});
}

void matmul(const MatmulParams& p) {
  switch (p.kind) {
    case Kind::stream: return kernels().stream_matmul(p);
    case Kind::panels:
    case Kind::panels_transposed: return kernels().panel_matmul(p);
    case Kind::pair_panels:
      if (p.x.dtype == DType::bf16 && kernels().pair_matmul) return kernels().panel_matmul(p);
      break;
    case Kind::pairs:
      if (p.x.dtype == DType::bf16 && kernels().pair_matmul) return kernels().pair_matmul(p);
      break;
#ifdef FASTOPS_HAS_AMX
    case Kind::amx_tiles:
      if (p.x.dtype == DType::bf16 && fastops::cpu::amx_available()) return amx::matmul(p);
      break;
#endif
    default: break;
  }
  fail("fastops._nm_matmul: no such packing on the CPU");
}

void weight_grad(const WeightGradParams& p) { kernels().weight_grad(p); }

}  // namespace fastops::nm::cpu
