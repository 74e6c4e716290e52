// Picks the kernel: the instruction set once, the layout per call.
#include "cpu/isa.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/rows.h"

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

// Whether no operand but x matters, and a block of rows is neighbours in memory at each element.
bool columns(const ForwardParams& p) {
  const Shape& s = p.shape;
  const int inner = s.row_dims - 1;
  return p.kind == Kind::softmax && !p.lse && plain_scores(p) && s.reduce_dims == 1 && inner >= 0 &&
         s.row_size[inner] >= kColumnBlock && p.x.row_stride[inner] == 1 &&
         p.out.row_stride[inner] == 1 && p.x.dtype == p.out.dtype && p.x.dtype != DType::f64 &&
         s.n <= kColumnElements;
}

}  // namespace

const Kernels& kernels() {
#define FASTOPS_TABLE(isa)                                                           \
  Kernels {                                                                          \
    isa::forward_rows, isa::forward_columns, isa::forward_tiles, isa::backward_rows, \
        isa::backward_tiles                                                          \
  }
  static const Kernels chosen = FASTOPS_ACTIVE(FASTOPS_TABLE);
#undef FASTOPS_TABLE
  return chosen;
}

void forward(const ForwardParams& p) {
  const Kernels& k = kernels();
  if (all_contiguous_rows(p.shape, p.x, p.out)) k.forward_rows(p);
  else if (columns(p)) k.forward_columns(p);
  else k.forward_tiles(p);
}

void backward(const BackwardParams& p) {
  const Kernels& k = kernels();
  (all_contiguous_rows(p.shape, p.y, p.dy, p.dx) ? k.backward_rows : k.backward_tiles)(p);
}

}  // namespace fastops::softmax::cpu
