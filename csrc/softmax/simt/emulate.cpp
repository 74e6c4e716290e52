#include "softmax/simt/emulate.h"

#include "softmax/simt/operands.h"

namespace fastops::softmax::emulated {

void forward(ForwardParams& p) {
  Operands operands(p.shape);
  operands.full("x", p.x, Access::read);
  operands.full("out", p.out, Access::write);
  operands.per_row("lse", p.lse, Access::write);
  add_scores(operands, p);
  p.workspace = operands.workspace(cuda::forward_workspace(p));
  operands.run(p, cuda::forward);
}

void backward(BackwardParams& p) {
  Operands operands(p.shape);
  operands.full("y", p.y, Access::read);
  operands.full("dy", p.dy, Access::read);
  operands.full("dx", p.dx, Access::write);
  operands.per_row("dlse", p.dlse, Access::read);
  operands.per_row("lse", p.lse, Access::read);
  add_scores(operands, p);
  p.workspace = operands.workspace(cuda::backward_workspace(p));
  operands.run(p, cuda::backward);
}

}  // namespace fastops::softmax::emulated
