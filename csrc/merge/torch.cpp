// The merge ops on tensors: validate, build Params, launch. Compiled once per op library.
#include <cstdlib>
#include <vector>

#include "bindings/torch_compat.h"
#include "merge/merge.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "merge/simt/emulate.h"
#elif defined(FASTOPS_BACKEND_CUDA)
#include "merge/cuda/launch.h"
#endif

namespace fastops::merge {
namespace {

using binding::empty_strided;
using binding::OptTensor;
using binding::Tensor;
using binding::to_dtype;
using Tensors = std::vector<Tensor>;

// The index of a source or destination is a lane of floats in the CPU kernels.
constexpr int64_t kMostTokens = 1 << 24;

Tensor empty(std::initializer_list<int64_t> sizes, DType dtype, const Tensor& like) {
  int64_t strides[4], step = 1;
  for (int d = int(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= sizes.begin()[d] > 1 ? sizes.begin()[d] : 1;
  }
  return empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype, like);
}

void same_device(const char* op, const Tensor& t, const Tensor& like, const char* name) {
  FASTOPS_CHECK(binding::device_type(t) == binding::device_type(like) &&
                    t.get_device_index() == like.get_device_index(),
                op, ": ", name, " is on another device");
}

void check_shape(const char* op, const Tensor& t, std::initializer_list<int64_t> sizes,
                 const char* name) {
  FASTOPS_CHECK(t.dim() == int64_t(sizes.size()), op, ": expected ", name, " of ", sizes.size(),
                " dims, got ", t.dim());
  for (int64_t d = 0; d < t.dim(); ++d)
    FASTOPS_CHECK(t.size(d) == sizes.begin()[d], op, ": expected ", name, ".shape[", d,
                  "] == ", sizes.begin()[d], ", got ", t.size(d));
}

// A contiguous tensor of integers or scores, as the kernels index them.
template <typename T>
T* contiguous(const char* op, const Tensor& t, DType dtype, const Tensor& like,
              std::initializer_list<int64_t> sizes, const char* name) {
  check_shape(op, t, sizes, name);
  same_device(op, t, like, name);
  FASTOPS_CHECK(to_dtype(t.scalar_type(), name) == dtype, op, ": ", name, " has the wrong dtype");
  FASTOPS_CHECK(t.is_contiguous(), op, ": expected a contiguous ", name);
  return static_cast<T*>(t.data_ptr());
}

struct PartitionArgs {
  OptTensor tokens;
  int64_t num_src, num_dst, k;
  bool class_token, distill_token;
  OptTensor padding_mask;
};

Partition make_partition(const char* op, const PartitionArgs& a, int64_t batch, int64_t n,
                         const Tensor& like) {
  Partition part;
  FASTOPS_CHECK(n < kMostTokens, op, ": expected fewer than ", kMostTokens, " tokens, got ", n);
  part.num_tokens = n;
  part.k = a.k;
  part.class_token = a.class_token;
  part.distill_token = a.distill_token;
  if (a.tokens) {
    const int64_t rows = a.tokens->dim() == 2 && a.tokens->size(0) == 1 ? 1 : batch;
    part.tokens = contiguous<const int32_t>(op, *a.tokens, DType::i32, like, {rows, n}, "tokens");
    part.tokens_stride = rows == 1 ? 0 : n;
    part.num_src = a.num_src;
    part.num_dst = a.num_dst;
    FASTOPS_CHECK(a.num_src >= 0 && a.num_dst >= 0 && a.num_src + a.num_dst <= n, op,
                  ": num_src + num_dst must be at most ", n);
  } else {
    FASTOPS_CHECK(a.k >= 2, op, ": k must be at least 2, got ", a.k);
    part.num_dst = n / a.k;
    part.num_src = n - part.num_dst;
  }
  if (a.padding_mask) {
    const Tensor& mask = *a.padding_mask;
    check_shape(op, mask, {batch, n}, "padding_mask");
    same_device(op, mask, like, "padding_mask");
    FASTOPS_CHECK(to_dtype(mask.scalar_type(), op) == DType::boolean, op,
                  ": padding_mask must be bool");
    part.padding = static_cast<const uint8_t*>(mask.data_ptr());
    part.padding_stride[0] = mask.stride(0);
    part.padding_stride[1] = mask.stride(1);
  }
  return part;
}

// ---- launch -------------------------------------------------------------------------------------

#ifdef FASTOPS_BACKEND_CUDA
template <typename Params>
void launch(const Params& p, const Tensor& like, void (*run)(const Params&, void*)) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  run(p, stream);
}
#define FASTOPS_RUN(name, p, like) launch(p, like, cuda::name)
#elif defined(FASTOPS_BACKEND_SIMT)
#define FASTOPS_RUN(name, p, like) cuda::emulate(p)
#else
#define FASTOPS_RUN(name, p, like) cpu::name(p)
#endif

// ---- match and plan -----------------------------------------------------------------------------

std::tuple<Tensor, Tensor> token_match(const Tensor& metric, const OptTensor& tokens,
                                       int64_t num_src, int64_t num_dst, int64_t k,
                                       bool class_token, bool distill_token,
                                       const OptTensor& padding_mask) {
  const char* op = "fastops.match_tokens";
  FASTOPS_CHECK(metric.dim() == 3 || metric.dim() == 4, op,
                ": expected a metric of 3 or 4 dims, got ", metric.dim());
  MatchParams p;
  p.metric = metric.data_ptr();
  p.dtype = to_dtype(metric.scalar_type(), op);
  FASTOPS_CHECK(is_floating(p.dtype), op, ": expected a floating metric");
  const int tail = int(metric.dim()) - 2;
  p.batch = metric.size(0);
  p.heads = tail == 2 ? metric.size(1) : 1;
  p.channels = metric.size(tail + 1);
  p.stride[0] = metric.stride(0);
  p.stride[1] = tail == 2 ? metric.stride(1) : 0;
  p.stride[2] = metric.stride(tail);
  p.stride[3] = metric.stride(tail + 1);
  FASTOPS_CHECK(p.heads > 0, op, ": expected at least one head");
  p.part =
      make_partition(op, {tokens, num_src, num_dst, k, class_token, distill_token, padding_mask},
                     p.batch, metric.size(tail), metric);
  const DType acc = accumulator(p.dtype, p.dtype);
  const Tensor scores = empty({p.batch, p.part.num_src}, acc, metric);
  const Tensor matches = empty({p.batch, p.part.num_src}, DType::i32, metric);
  p.scores = scores.data_ptr();
  p.matches = static_cast<int32_t*>(matches.data_ptr());
  if (p.batch > 0 && p.part.num_src > 0) FASTOPS_RUN(match, p, metric);
  return {scores, matches};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> token_plan(
    const Tensor& scores, const Tensor& matches, int64_t num_tokens, int64_t r, int64_t num_out,
    const OptTensor& tokens, int64_t num_src, int64_t num_dst, int64_t k, bool class_token,
    bool distill_token, const OptTensor& padding_mask, std::optional<double> threshold,
    int64_t order) {
  const char* op = "fastops.match_tokens";
  FASTOPS_CHECK(scores.dim() == 2, op, ": expected scores of 2 dims, got ", scores.dim());
  FASTOPS_CHECK(num_tokens >= 0 && num_out >= 0 && num_out <= num_tokens, op,
                ": expected 0 <= num_out <= num_tokens");
  FASTOPS_CHECK(order >= 0 && order <= 2, op, ": order must be 0, 1 or 2");
  PlanParams p;
  p.batch = scores.size(0);
  p.part =
      make_partition(op, {tokens, num_src, num_dst, k, class_token, distill_token, padding_mask},
                     p.batch, num_tokens, scores);
  p.score_dtype = to_dtype(scores.scalar_type(), op);
  FASTOPS_CHECK(p.score_dtype == DType::f32 || p.score_dtype == DType::f64, op,
                ": expected scores of float32 or float64");
  p.scores = contiguous<const void>(op, scores, p.score_dtype, scores, {p.batch, p.part.num_src},
                                    "scores");
  p.matches = contiguous<const int32_t>(op, matches, DType::i32, scores, {p.batch, p.part.num_src},
                                        "matches");
  p.r = r;
  p.num_out = num_out;
  p.has_threshold = threshold.has_value();
  p.threshold = threshold.value_or(0.0);
  p.order = static_cast<Order>(order);
  const Tensor map = empty({p.batch, num_tokens}, DType::i32, scores);
  const Tensor offsets = empty({p.batch, num_out + 1}, DType::i32, scores);
  const Tensor perm = empty({p.batch, num_tokens}, DType::i32, scores);
  const Tensor lengths = empty({p.batch}, DType::i32, scores);
  p.map = static_cast<int32_t*>(map.data_ptr());
  p.offsets = static_cast<int32_t*>(offsets.data_ptr());
  p.perm = static_cast<int32_t*>(perm.data_ptr());
  p.lengths = static_cast<int32_t*>(lengths.data_ptr());
  if (p.batch > 0) FASTOPS_RUN(plan, p, scores);
  return {map, offsets, perm, lengths};
}

std::tuple<Tensor, Tensor, Tensor> plan_compose(const Tensor& first, const OptTensor& next,
                                                int64_t num_out) {
  const char* op = "fastops.MergePlan";
  FASTOPS_CHECK(first.dim() == 2 && num_out >= 0, op, ": expected a map of 2 dims");
  ComposeParams p;
  p.batch = first.size(0);
  p.num_tokens = first.size(1);
  p.num_out = num_out;
  FASTOPS_CHECK(p.num_tokens < kMostTokens && num_out <= kMostTokens, op, ": too many tokens");
  p.first = contiguous<const int32_t>(op, first, DType::i32, first, {p.batch, p.num_tokens}, "map");
  if (next) {
    FASTOPS_CHECK(next->dim() == 2, op, ": expected a map of 2 dims");
    p.num_mid = next->size(1);
    p.next = contiguous<const int32_t>(op, *next, DType::i32, first, {p.batch, p.num_mid}, "next");
  }
  const Tensor map = empty({p.batch, p.num_tokens}, DType::i32, first);
  const Tensor offsets = empty({p.batch, num_out + 1}, DType::i32, first);
  const Tensor perm = empty({p.batch, p.num_tokens}, DType::i32, first);
  p.map = static_cast<int32_t*>(map.data_ptr());
  p.offsets = static_cast<int32_t*>(offsets.data_ptr());
  p.perm = static_cast<int32_t*>(perm.data_ptr());
  if (p.batch > 0) FASTOPS_RUN(compose, p, first);
  return {map, offsets, perm};
}

Tensor token_select(const Tensor& scores, int64_t keep, int64_t pool, bool class_token,
                    bool distill_token, const OptTensor& padding_mask) {
  const char* op = "fastops.prune_tokens";
  FASTOPS_CHECK(scores.dim() == 2, op, ": expected scores of 2 dims, got ", scores.dim());
  SelectParams p;
  p.batch = scores.size(0);
  p.part = make_partition(op, {std::nullopt, 0, 0, 2, class_token, distill_token, padding_mask},
                          p.batch, scores.size(1), scores);
  p.score_dtype = to_dtype(scores.scalar_type(), op);
  FASTOPS_CHECK(p.score_dtype == DType::f32 || p.score_dtype == DType::f64, op,
                ": expected scores of float32 or float64");
  p.scores = contiguous<const void>(op, scores, p.score_dtype, scores, {p.batch, p.part.num_tokens},
                                    "scores");
  FASTOPS_CHECK(keep >= 0 && pool >= 0 && keep + pool <= p.part.num_tokens, op,
                ": expected keep + pool <= ", p.part.num_tokens);
  p.keep = keep;
  p.pool = pool;
  const Tensor tokens = empty({p.batch, p.part.num_tokens}, DType::i32, scores);
  p.tokens = static_cast<int32_t*>(tokens.data_ptr());
  if (p.batch > 0 && p.part.num_tokens > 0) FASTOPS_RUN(select, p, scores);
  return tokens;
}

// ---- merge and unmerge --------------------------------------------------------------------------

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
  same_device(op, t, like, name);
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

void merge_tokens_out(const Tensors& xs, const Tensor& map, const Tensor& offsets,
                      const Tensor& perm, const OptTensor& size, int64_t mode, const Tensors& ys,
                      const Tensor& merged, const Tensor& log_merged) {
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
  if (p.plan.batch > 0 && p.plan.num_out > 0) FASTOPS_RUN(merge, p, map);
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
  merge_tokens_out(xs, map, offsets, perm, size, mode, ys, merged, log_merged);
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
  if (p.plan.batch > 0 && p.plan.num_tokens > 0) FASTOPS_RUN(merge_backward, p, map);
  return {dxs, dsize};
}

void unmerge_tokens_out(const Tensor& y, const Tensor& map, const Tensor& offsets,
                        const Tensor& perm, const OptTensor& residual, const Tensor& out) {
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
  if (p.plan.batch > 0 && p.plan.num_tokens > 0) FASTOPS_RUN(unmerge, p, map);
}

Tensor unmerge_tokens(const Tensor& y, const Tensor& map, const Tensor& offsets, const Tensor& perm,
                      const OptTensor& residual) {
  const char* op = "fastops.unmerge_tokens";
  const PlanView plan = make_plan(op, map, offsets, perm);
  make_rows(op, y, plan.batch, plan.num_out, map, "y");  // checks
  const Tensor out = empty_rows(y, plan.num_tokens);
  unmerge_tokens_out(y, map, offsets, perm, residual, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("token_match", TORCH_BOX(&token_match));
  m.impl("token_plan", TORCH_BOX(&token_plan));
  m.impl("plan_compose", TORCH_BOX(&plan_compose));
  m.impl("token_select", TORCH_BOX(&token_select));
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens));
  m.impl("merge_tokens.out", TORCH_BOX(&merge_tokens_out));
  m.impl("merge_tokens_backward", TORCH_BOX(&merge_tokens_backward));
  m.impl("unmerge_tokens", TORCH_BOX(&unmerge_tokens));
  m.impl("unmerge_tokens.out", TORCH_BOX(&unmerge_tokens_out));
}

}  // namespace fastops::merge
