// merge_tokens, unmerge_tokens and the derivative on tensors: validate, build Params, launch.
#include "merge/torch.h"

namespace fastops::merge {
namespace {

PlanView make_plan(const char* op, const Tensor& map, const Tensor& offsets, const Tensor& perm) {
  FASTOPS_CHECK(map.dim() == 2 && offsets.dim() == 2 && offsets.size(1) >= 1, op,
                ": expected a plan of map [B, N], offsets [B, M + 1] and perm [B, N]");
  PlanView plan;
  plan.batch = map.size(0);
  plan.num_tokens = map.size(1);
  plan.num_out = offsets.size(1) - 1;
  plan.map =
      contiguous<const int32_t>(op, map, DType::i32, map, {plan.batch, plan.num_tokens}, "map");
  plan.offsets = contiguous<const int32_t>(op, offsets, DType::i32, map,
                                           {plan.batch, plan.num_out + 1}, "offsets");
  plan.perm =
      contiguous<const int32_t>(op, perm, DType::i32, map, {plan.batch, plan.num_tokens}, "perm");
  return plan;
}

// [B, rows, C] or [B, middle, rows, C].
Rows make_rows(const char* op, const Tensor& t, int64_t batch, int64_t count, const Tensor& like,
               const char* name) {
  FASTOPS_CHECK(t.dim() == 3 || t.dim() == 4, op, ": expected ", name, " of 3 or 4 dims, got ",
                t.dim());
  check_device(op, t, like, name);
  const int tail = int(t.dim()) - 2;
  FASTOPS_CHECK(t.size(0) == batch, op, ": expected ", name, ".shape[0] == ", batch,
                " (samples of the plan), got ", t.size(0));
  FASTOPS_CHECK(t.size(tail) == count, op, ": expected ", name, ".shape[-2] == ", count,
                " (tokens of the plan), got ", t.size(tail));
  Rows rows;
  rows.data = t.data_ptr();
  rows.dtype = to_dtype(t.scalar_type(), name);
  FASTOPS_CHECK(is_floating(rows.dtype), op, ": expected a floating ", name);
  rows.middle = tail == 2 ? t.size(1) : 1;
  rows.channels = t.size(tail + 1);
  rows.stride[0] = t.stride(0);
  rows.stride[1] = tail == 2 ? t.stride(1) : 0;
  rows.stride[2] = t.stride(tail);
  rows.stride[3] = t.stride(tail + 1);
  return rows;
}

void check_same(const char* op, const Rows& a, const Rows& b, const char* name) {
  FASTOPS_CHECK(a.dtype == b.dtype && a.middle == b.middle && a.channels == b.channels, op,
                ": expected ", name, " of the same dtype and shape as x");
}

Tensor empty_rows(const Tensor& like, int64_t count) {
  const DType dtype = to_dtype(like.scalar_type(), "x");
  if (like.dim() == 3) return empty({like.size(0), count, like.size(2)}, dtype, like);
  return empty({like.size(0), like.size(1), count, like.size(3)}, dtype, like);
}

Mode make_mode(const char* op, int64_t mode) {
  FASTOPS_CHECK(mode >= 0 && mode <= 3, op, ": mode must be 0 to 3");
  return static_cast<Mode>(mode);
}

DType size_dtype_of(const Tensors& xs) {
  for (const Tensor& x : xs)
    if (to_dtype(x.scalar_type(), "x") == DType::f64) return DType::f64;
  return DType::f32;
}

void check_count(const char* op, const Tensors& xs) {
  FASTOPS_CHECK(!xs.empty() && xs.size() <= size_t(kMaxTensors), op, ": expected 1 to ",
                kMaxTensors, " tensors, got ", xs.size());
}

void merge_into(const Tensors& xs, const Tensor& map, const Tensor& offsets, const Tensor& perm,
                const OptTensor& size, int64_t mode, const Tensors& ys, const Tensor& merged,
                const Tensor& log_merged, bool fresh) {
  const char* op = "fastops.merge_tokens";
  check_count(op, xs);
  FASTOPS_CHECK(ys.size() == xs.size(), op, ": expected ", xs.size(), " outputs");
  MergeParams p;
  p.plan = make_plan(op, map, offsets, perm);
  p.mode = make_mode(op, mode);
  p.tensors = int(xs.size());
  p.size_dtype = size_dtype_of(xs);
  const std::initializer_list<int64_t> rows = {p.plan.batch, p.plan.num_out};
  if (size)
    p.size = contiguous<const void>(op, *size, p.size_dtype, map, {p.plan.batch, p.plan.num_tokens},
                                    "size");
  for (int t = 0; t < p.tensors; ++t) {
    p.x[t] = make_rows(op, xs[t], p.plan.batch, p.plan.num_tokens, map, "x");
    p.y[t] = make_rows(op, ys[t], p.plan.batch, p.plan.num_out, map, "out");
    check_same(op, p.x[t], p.y[t], "out");
    FASTOPS_CHECK(ys[t].is_contiguous(), op, ": expected a contiguous out");
  }
  p.merged = contiguous<void>(op, merged, p.size_dtype, map, rows, "out of sizes");
  p.log_merged = contiguous<void>(op, log_merged, p.size_dtype, map, rows, "out of sizes");
  p.fresh = fresh;
  if (p.plan.batch > 0 && p.plan.num_out > 0) FASTOPS_RUN(merge, map, p);
}

void merge_tokens_out(const Tensors& xs, const Tensor& map, const Tensor& offsets,
                      const Tensor& perm, const OptTensor& size, int64_t mode, const Tensors& ys,
                      const Tensor& merged, const Tensor& log_merged) {
  merge_into(xs, map, offsets, perm, size, mode, ys, merged, log_merged, false);
}

std::tuple<Tensors, Tensor, Tensor> merge_tokens(const Tensors& xs, const Tensor& map,
                                                 const Tensor& offsets, const Tensor& perm,
                                                 const OptTensor& size, int64_t mode) {
  const char* op = "fastops.merge_tokens";
  check_count(op, xs);
  const PlanView plan = make_plan(op, map, offsets, perm);
  Tensors ys;
  for (const Tensor& x : xs) {
    make_rows(op, x, plan.batch, plan.num_tokens, map, "x");  // checks
    ys.push_back(empty_rows(x, plan.num_out));
  }
  const Tensor merged = empty({plan.batch, plan.num_out}, size_dtype_of(xs), map);
  const Tensor log_merged = empty({plan.batch, plan.num_out}, size_dtype_of(xs), map);
  merge_into(xs, map, offsets, perm, size, mode, ys, merged, log_merged, true);
  return {ys, merged, log_merged};
}

std::tuple<Tensors, Tensor> merge_tokens_backward(const Tensors& grads, const Tensors& xs,
                                                  const Tensors& ys, const Tensor& map,
                                                  const Tensor& offsets, const Tensor& perm,
                                                  const OptTensor& size, const OptTensor& merged,
                                                  const OptTensor& grad_merged, int64_t mode,
                                                  bool size_grad) {
  const char* op = "fastops.merge_tokens_backward";
  check_count(op, grads);
  MergeBackwardParams p;
  p.plan = make_plan(op, map, offsets, perm);
  p.mode = make_mode(op, mode);
  p.tensors = int(grads.size());
  p.size_dtype = size_dtype_of(grads);
  const bool rows_needed = size_grad || p.mode == Mode::max || p.mode == Mode::mlerp;
  FASTOPS_CHECK(!rows_needed || (xs.size() == grads.size() && ys.size() == grads.size()), op,
                ": expected x and y");
  const auto scalars = [&](const OptTensor& t, int64_t count, const char* name) {
    return t ? contiguous<const void>(op, *t, p.size_dtype, map, {p.plan.batch, count}, name)
             : nullptr;
  };
  p.size = scalars(size, p.plan.num_tokens, "size");
  p.merged = scalars(merged, p.plan.num_out, "merged");
  p.dmerged = scalars(grad_merged, p.plan.num_out, "grad_merged");
  FASTOPS_CHECK(p.merged || !(p.size || size_grad), op, ": expected merged with size");
  Tensors dxs;
  for (int t = 0; t < p.tensors; ++t) {
    p.dy[t] = make_rows(op, grads[t], p.plan.batch, p.plan.num_out, map, "grad");
    dxs.push_back(empty_rows(grads[t], p.plan.num_tokens));
    p.dx[t] = make_rows(op, dxs[t], p.plan.batch, p.plan.num_tokens, map, "dx");
    if (!rows_needed) continue;
    p.x[t] = make_rows(op, xs[t], p.plan.batch, p.plan.num_tokens, map, "x");
    p.y[t] = make_rows(op, ys[t], p.plan.batch, p.plan.num_out, map, "y");
    check_same(op, p.dy[t], p.x[t], "grad");
    check_same(op, p.dy[t], p.y[t], "grad");
  }
  const Tensor dsize = empty({size_grad ? p.plan.batch : 0, p.plan.num_tokens}, p.size_dtype, map);
  if (size_grad) p.dsize = dsize.data_ptr();
  if (p.plan.batch > 0 && p.plan.num_tokens > 0) FASTOPS_RUN(merge_backward, map, p);
  return {dxs, dsize};
}

void unmerge_into(const Tensor& y, const Tensor& map, const Tensor& offsets, const Tensor& perm,
                  const OptTensor& residual, const Tensor& out, bool fresh) {
  const char* op = "fastops.unmerge_tokens";
  UnmergeParams p;
  p.plan = make_plan(op, map, offsets, perm);
  p.y = make_rows(op, y, p.plan.batch, p.plan.num_out, map, "y");
  p.out = make_rows(op, out, p.plan.batch, p.plan.num_tokens, map, "out");
  check_same(op, p.y, p.out, "out");
  FASTOPS_CHECK(out.is_contiguous(), op, ": expected a contiguous out");
  if (residual) {
    p.residual = make_rows(op, *residual, p.plan.batch, p.plan.num_tokens, map, "residual");
    check_same(op, p.residual, p.out, "residual");
  }
  p.fresh = fresh;
  if (p.plan.batch > 0 && p.plan.num_tokens > 0) FASTOPS_RUN(unmerge, map, p);
}

void unmerge_tokens_out(const Tensor& y, const Tensor& map, const Tensor& offsets,
                        const Tensor& perm, const OptTensor& residual, const Tensor& out) {
  unmerge_into(y, map, offsets, perm, residual, out, false);
}

Tensor unmerge_tokens(const Tensor& y, const Tensor& map, const Tensor& offsets, const Tensor& perm,
                      const OptTensor& residual) {
  const char* op = "fastops.unmerge_tokens";
  const PlanView plan = make_plan(op, map, offsets, perm);
  make_rows(op, y, plan.batch, plan.num_out, map, "y");  // checks
  const Tensor out = empty_rows(y, plan.num_tokens);
  unmerge_into(y, map, offsets, perm, residual, out, true);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens));
  m.impl("merge_tokens.out", TORCH_BOX(&merge_tokens_out));
  m.impl("merge_tokens_backward", TORCH_BOX(&merge_tokens_backward));
  m.impl("unmerge_tokens", TORCH_BOX(&unmerge_tokens));
  m.impl("unmerge_tokens.out", TORCH_BOX(&unmerge_tokens_out));
}

}  // namespace fastops::merge
