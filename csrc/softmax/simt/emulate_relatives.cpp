#include "softmax/simt/emulate_relatives.h"

#include "softmax/simt/operands.h"

namespace fastops::softmax::emulated {

void map(MapParams& p) {
  Operands operands(p.shape);
  operands.full("x", p.x, Access::read);
  operands.full("dy", p.dy, Access::read);
  operands.full("out", p.out, Access::write);
  operands.per_row("row_alpha", p.row_alpha, Access::read);
  operands.per_row("target", p.target, Access::read);
  operands.per_row("per_row", p.per_row, p.out ? Access::read : Access::write);
  add_scores(operands, p);
  operands.run(p, cuda::map);
}

void topk(TopkParams& p) {
  Operands operands(p.shape);
  const Access results = p.backward ? Access::read : Access::write;
  operands.full("x", p.x, Access::read);
  operands.full("out", p.out, Access::write);
  operands.chosen("values", p.values, p.values_stride, p.k, results);
  operands.chosen("indices", p.indices, p.indices_stride, p.k, results);
  operands.per_row("lse", p.lse, results);
  add_scores(operands, p);
  p.workspace = operands.workspace(cuda::topk_workspace(p));
  operands.run(p, cuda::topk);
}

}  // namespace fastops::softmax::emulated
