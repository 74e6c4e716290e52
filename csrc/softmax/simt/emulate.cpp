#include "softmax/simt/emulate.h"

#include "softmax/simt/operands.h"

namespace fastops::softmax::cuda {

void emulate(ForwardParams& p) {
  Operands operands(p.shape);
  operands.full("x", p.x, Access::read);
  operands.full("out", p.out, Access::write);
  operands.per_row("lse", p.lse, Access::write);
  add_scores(operands, p);
  p.workspace = operands.workspace(forward_workspace(p));
  forward(p, nullptr);
  operands.require_written();
}

void emulate(BackwardParams& p) {
  Operands operands(p.shape);
  operands.full("y", p.y, Access::read);
  operands.full("dy", p.dy, Access::read);
  operands.full("dx", p.dx, Access::write);
  operands.per_row("dlse", p.dlse, Access::read);
  operands.per_row("lse", p.lse, Access::read);
  add_scores(operands, p);
  p.workspace = operands.workspace(backward_workspace(p));
  backward(p, nullptr);
  operands.require_written();
}

}  // namespace fastops::softmax::cuda
