#include "softmax/cpu/kernels.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {

void forward_strided(const ForwardParams& p) { plain_forward(p); }
void backward_strided(const BackwardParams& p) { plain_backward(p); }

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
