// Picks the instruction set, once.
#include "cpu/isa.h"
#include "merge/cpu/kernels.h"

namespace fastops::merge::cpu {
namespace {

struct Kernels {
  void (*match)(const MatchParams&);
  void (*merge)(const MergeParams&);
  void (*merge_backward)(const MergeBackwardParams&);
  void (*unmerge)(const UnmergeParams&);
};

const Kernels& kernels() {
#define FASTOPS_TABLE(isa) \
  Kernels { isa::match, isa::merge, isa::merge_backward, isa::unmerge }
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

}  // namespace

void match(const MatchParams& p) { kernels().match(p); }
void merge(const MergeParams& p) { kernels().merge(p); }
void merge_backward(const MergeBackwardParams& p) { kernels().merge_backward(p); }
void unmerge(const UnmergeParams& p) { kernels().unmerge(p); }

}  // namespace fastops::merge::cpu
