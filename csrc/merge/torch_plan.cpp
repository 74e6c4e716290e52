// token_match, token_plan, plan_compose and token_select on tensors: validate, build Params,
// launch.
#include "merge/torch.h"

namespace fastops::merge {
namespace {

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
    check_device(op, mask, like, "padding_mask");
    FASTOPS_CHECK(to_dtype(mask.scalar_type(), op) == DType::boolean, op,
                  ": padding_mask must be bool");
    part.padding = static_cast<const uint8_t*>(mask.data_ptr());
    part.padding_stride[0] = mask.stride(0);
    part.padding_stride[1] = mask.stride(1);
  }
  return part;
}

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
  if (p.batch > 0 && p.part.num_src > 0) FASTOPS_RUN(match, metric, p);
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
  if (p.batch > 0) FASTOPS_RUN(plan, scores, p);
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
  if (p.batch > 0) FASTOPS_RUN(compose, first, p);
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
  if (p.batch > 0 && p.part.num_tokens > 0) FASTOPS_RUN(select, scores, p);
  return tokens;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("token_match", TORCH_BOX(&token_match));
  m.impl("token_plan", TORCH_BOX(&token_plan));
  m.impl("plan_compose", TORCH_BOX(&plan_compose));
  m.impl("token_select", TORCH_BOX(&token_select));
}

}  // namespace fastops::merge
