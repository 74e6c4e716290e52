// Picks the instruction set, once.
#include "cpu/isa.h"
#include "merge/cpu/kernels.h"

namespace fastops::merge::cpu {
namespace {

struct Kernels {
  void (*match)(const MatchParams&, bool screen);
  void (*merge)(const MergeParams&);
  void (*merge_backward)(const MergeBackwardParams&);
  void (*unmerge)(const UnmergeParams&);
};

const Kernels& kernels() {
#define FASTOPS_TABLE(isa) \
  Kernels { isa::match, isa::merge, isa::merge_backward, isa::unmerge }
  static const Kernels chosen = FASTOPS_ACTIVE(FASTOPS_TABLE);
#undef FASTOPS_TABLE
  return chosen;
}

}  // namespace

void match(const MatchParams& p) {
  // Intel's cores multiply pairs of bf16 no faster than fp32.
  static const bool screen = fastops::cpu::is_amd();
  kernels().match(p, screen);
}
void merge(const MergeParams& p) { kernels().merge(p); }
void merge_backward(const MergeBackwardParams& p) { kernels().merge_backward(p); }
void unmerge(const UnmergeParams& p) { kernels().unmerge(p); }

}  // namespace fastops::merge::cpu
