#include "merge/simt/emulate.h"

#include <vector>

#include "merge/cuda/launch.h"
#include "simt/tensors.h"

namespace fastops::merge::emulated {
namespace {

using simt::Access;

class Operands : public simt::Tensors {
 public:
  using Tensors::add;

  void add(const char* name, const Rows& rows, int64_t batch, int64_t count, Access access) {
    add(name, rows.data, size_of(rows.dtype), {batch, rows.middle, count, rows.channels},
        {rows.stride[0], rows.stride[1], rows.stride[2], rows.stride[3]}, access);
  }

  void add(const PlanView& plan) {
    add("map", plan.map, 4, {plan.batch, plan.num_tokens}, Access::read);
    add("offsets", plan.offsets, 4, {plan.batch, plan.num_out + 1}, Access::read);
    add("perm", plan.perm, 4, {plan.batch, plan.num_tokens}, Access::read);
  }

  void add(const Partition& part, int64_t batch) {
    add("tokens", part.tokens, 4, {part.tokens_stride ? batch : 1, part.num_tokens},
        {part.num_tokens, 1}, Access::read);
    add("padding_mask", part.padding, 1, {batch, part.num_tokens},
        {part.padding_stride[0], part.padding_stride[1]}, Access::read);
  }
};

}  // namespace

void match(const MatchParams& p) {
  Operands o;
  o.add("metric", p.metric, size_of(p.dtype), {p.batch, p.heads, p.part.num_tokens, p.channels},
        {p.stride[0], p.stride[1], p.stride[2], p.stride[3]}, Access::read);
  o.add(p.part, p.batch);
  o.add("scores", p.scores, p.dtype == DType::f64 ? 8 : 4, {p.batch, p.part.num_src},
        Access::write);
  o.add("matches", p.matches, 4, {p.batch, p.part.num_src}, Access::write);
  o.run(p, cuda::match);
}

void plan(const PlanParams& p) {
  Operands o;
  o.add("scores", p.scores, size_of(p.score_dtype), {p.batch, p.part.num_src}, Access::read);
  o.add("matches", p.matches, 4, {p.batch, p.part.num_src}, Access::read);
  o.add(p.part, p.batch);
  o.add("map", p.map, 4, {p.batch, p.part.num_tokens}, Access::write);
  o.add("offsets", p.offsets, 4, {p.batch, p.num_out + 1}, Access::write);
  o.add("perm", p.perm, 4, {p.batch, p.part.num_tokens}, Access::write);
  o.add("lengths", p.lengths, 4, {1, p.batch}, Access::write);
  o.run(p, cuda::plan);
}

void compose(const ComposeParams& p) {
  Operands o;
  o.add("first", p.first, 4, {p.batch, p.num_tokens}, Access::read);
  o.add("next", p.next, 4, {p.batch, p.num_mid}, Access::read);
  o.add("map", p.map, 4, {p.batch, p.num_tokens}, Access::write);
  o.add("offsets", p.offsets, 4, {p.batch, p.num_out + 1}, Access::write);
  o.add("perm", p.perm, 4, {p.batch, p.num_tokens}, Access::write);
  o.run(p, cuda::compose);
}

void select(const SelectParams& p) {
  Operands o;
  o.add("scores", p.scores, size_of(p.score_dtype), {p.batch, p.part.num_tokens}, Access::read);
  o.add(p.part, p.batch);
  o.add("tokens", p.tokens, 4, {p.batch, p.part.num_tokens}, Access::write);
  o.run(p, cuda::select);
}

void merge(const MergeParams& p) {
  const PlanView& plan = p.plan;
  const size_t size = size_of(p.size_dtype);
  Operands o;
  o.add(plan);
  for (int t = 0; t < p.tensors; ++t) {
    o.add("x", p.x[t], plan.batch, plan.num_tokens, Access::read);
    o.add("y", p.y[t], plan.batch, plan.num_out, Access::write);
  }
  o.add("size", p.size, size, {plan.batch, plan.num_tokens}, Access::read);
  o.add("merged", p.merged, size, {plan.batch, plan.num_out}, Access::write);
  o.add("log_merged", p.log_merged, size, {plan.batch, plan.num_out}, Access::write);
  o.run(p, cuda::merge);
}

void merge_backward(const MergeBackwardParams& p) {
  const PlanView& plan = p.plan;
  const size_t size = size_of(p.size_dtype);
  Operands o;
  o.add(plan);
  for (int t = 0; t < p.tensors; ++t) {
    o.add("dy", p.dy[t], plan.batch, plan.num_out, Access::read);
    o.add("x", p.x[t], plan.batch, plan.num_tokens, Access::read);
    o.add("y", p.y[t], plan.batch, plan.num_out, Access::read);
    o.add("dx", p.dx[t], plan.batch, plan.num_tokens, Access::write);
  }
  o.add("size", p.size, size, {plan.batch, plan.num_tokens}, Access::read);
  o.add("merged", p.merged, size, {plan.batch, plan.num_out}, Access::read);
  o.add("dmerged", p.dmerged, size, {plan.batch, plan.num_out}, Access::read);
  o.add("dsize", p.dsize, size, {plan.batch, plan.num_tokens}, Access::write);
  o.run(p, cuda::merge_backward);
}

void unmerge(const UnmergeParams& p) {
  const PlanView& plan = p.plan;
  Operands o;
  o.add(plan);
  o.add("y", p.y, plan.batch, plan.num_out, Access::read);
  o.add("residual", p.residual, plan.batch, plan.num_tokens, Access::read);
  o.add("out", p.out, plan.batch, plan.num_tokens, Access::write);
  o.run(p, cuda::unmerge);
}

}  // namespace fastops::merge::emulated
