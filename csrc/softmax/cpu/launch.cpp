// Picks the kernel: the instruction set once, the layout per call.
#include "cpu/isa.h"
#include "softmax/cpu/kernels.h"

namespace fastops::softmax::cpu {
namespace {

enum class Layout { rows, columns, strided };

// How one operand that is read or written element by element lies.
bool contiguous_rows(const Shape& shape, const Operand& operand) {
  return !operand || shape.reduce_dims == 0 ||
         (shape.reduce_dims == 1 && operand.reduce_stride[0] == 1);
}

bool contiguous_columns(const Shape& shape, const Operand& operand) {
  return !operand || (shape.reduce_dims == 1 && shape.row_dims > 0 &&
                      operand.row_stride[shape.row_dims - 1] == 1);
}

template <typename... Operands>
Layout classify(const Shape& shape, const Operands&... operands) {
  if ((contiguous_rows(shape, operands) && ...)) return Layout::rows;
  if ((contiguous_columns(shape, operands) && ...)) return Layout::columns;
  return Layout::strided;
}

}  // namespace

const Kernels& kernels() {
#define FASTOPS_TABLE(isa)                                                             \
  Kernels {                                                                            \
    isa::forward_rows, isa::forward_columns, isa::forward_strided, isa::backward_rows, \
        isa::backward_columns, isa::backward_strided                                   \
  }
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

void forward(const ForwardParams& p) {
  switch (classify(p.shape, p.x, p.out)) {
    case Layout::rows: return kernels().forward_rows(p);
    case Layout::columns: return kernels().forward_columns(p);
    case Layout::strided: return kernels().forward_strided(p);
  }
}

void backward(const BackwardParams& p) {
  switch (classify(p.shape, p.y, p.dy, p.dx)) {
    case Layout::rows: return kernels().backward_rows(p);
    case Layout::columns: return kernels().backward_columns(p);
    case Layout::strided: return kernels().backward_strided(p);
  }
}

}  // namespace fastops::softmax::cpu
