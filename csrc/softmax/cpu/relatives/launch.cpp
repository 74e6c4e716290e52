// Picks the instruction set, once.
#include "cpu/isa.h"
#include "softmax/cpu/relatives/kernels.h"

namespace fastops::softmax::cpu {
namespace {

struct Relatives {
  void (*map_forward)(const MapParams&);
  void (*map_backward)(const MapParams&);
  void (*topk)(const TopkParams&);
};

const Relatives& relatives() {
#define FASTOPS_TABLE(isa) \
  Relatives { isa::map_forward, isa::map_backward, isa::topk }
  static const Relatives chosen = [] {
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

}  // namespace

void map(const MapParams& p) {
  (p.backward ? relatives().map_backward : relatives().map_forward)(p);
}
void topk(const TopkParams& p) { relatives().topk(p); }

}  // namespace fastops::softmax::cpu
