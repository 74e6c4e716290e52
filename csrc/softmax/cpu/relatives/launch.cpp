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
  static const Relatives chosen = FASTOPS_ACTIVE(FASTOPS_TABLE);
#undef FASTOPS_TABLE
  return chosen;
}

}  // namespace

void map(const MapParams& p) {
  (p.backward ? relatives().map_backward : relatives().map_forward)(p);
}
void topk(const TopkParams& p) { relatives().topk(p); }

}  // namespace fastops::softmax::cpu
