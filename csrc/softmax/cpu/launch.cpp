// Picks the kernel: the instruction set once, the layout per call.
#include "cpu/isa.h"
#include "softmax/cpu/kernels.h"

namespace fastops::softmax::cpu {
namespace {

// Whether an operand's reduced elements are neighbours in memory.
bool contiguous_rows(const Shape& shape, const Operand& operand) {
  return !operand || shape.reduce_dims == 0 ||
         (shape.reduce_dims == 1 && operand.reduce_stride[0] == 1);
}

template <typename... Operands>
bool all_contiguous_rows(const Shape& shape, const Operands&... operands) {
  return (contiguous_rows(shape, operands) && ...);
}

}  // namespace

const Kernels& kernels() {
#define FASTOPS_TABLE(isa) \
  Kernels { isa::forward_rows, isa::forward_tiles, isa::backward_rows, isa::backward_tiles }
  static const Kernels chosen = FASTOPS_ACTIVE(FASTOPS_TABLE);
#undef FASTOPS_TABLE
  return chosen;
}

void forward(const ForwardParams& p) {
  const Kernels& k = kernels();
  (all_contiguous_rows(p.shape, p.x, p.out) ? k.forward_rows : k.forward_tiles)(p);
}

void backward(const BackwardParams& p) {
  const Kernels& k = kernels();
  (all_contiguous_rows(p.shape, p.y, p.dy, p.dx) ? k.backward_rows : k.backward_tiles)(p);
}

}  // namespace fastops::softmax::cpu
