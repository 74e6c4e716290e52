#include "softmax/cpu/kernels.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {

void backward_columns(const BackwardParams& p) { plain_backward(p); }

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
