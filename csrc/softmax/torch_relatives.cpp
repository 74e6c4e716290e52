// The relatives of softmax on tensors: validate, build Params, launch. As torch.cpp.
#include "softmax/problem.h"
#include "softmax/relatives.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "softmax/simt/emulate_relatives.h"
#endif

namespace fastops::softmax {
namespace {

DType floating(const char* op, const Tensor& t, const char* name) {
  const DType dtype = to_dtype(t.scalar_type(), name);
  FASTOPS_CHECK(is_floating(dtype), op, ": expected a floating ", name);
  return dtype;
}

// Arguments of the maps, in the order of the schemas.
struct MapArgs {
  OptTensor mask, lengths;
  int64_t causal;
  double scale;
  OptTensor row_scale;

  ScoreArgs scores() const { return {mask, std::nullopt, lengths, causal, scale, row_scale}; }
};

struct Alpha {
  double alpha = 1.5;
  OptTensor row_alpha;
};

void add_alpha(const char* op, Problem& problem, MapParams& p, const Alpha& a, DType acc) {
  p.alpha = a.alpha;
  problem.per_row(kAlpha, p.row_alpha, a.row_alpha, "row_alpha");
  check_dtype(op, p.row_alpha, acc, "row_alpha");
  FASTOPS_CHECK(p.row_alpha || (a.alpha > 0 && a.alpha <= 4), op,
                ": expected alpha in (0, 4], got ", a.alpha);
}

void add_target(const char* op, Problem& problem, MapParams& p, const Tensor& target,
                int64_t ignore_index) {
  problem.per_row(kTarget, p.target, target, "target");
  check_dtype(op, p.target, DType::i64, "target");
  p.ignore_index = ignore_index;
}

void finish(Problem& problem, MapParams& p, [[maybe_unused]] const Tensor& like) {
  problem.finish(p.shape, p.query_stride, p.lengths || p.causal || p.target);
  FASTOPS_RUN_WITH_WORKSPACE(map, like, p);
}

// One op of the family: forward from x, or backward from dy and x (y for entmax).
Tensor run_map(const char* op, MapParams p, const Tensor& x, const OptTensor& dy, const Dims& dims,
               const MapArgs& a, const Alpha& alpha, std::optional<ScalarType> dtype) {
  Problem problem(op, x, dims);
  const DType in = floating(op, x, "x");
  const DType result = dtype ? to_dtype(*dtype, op) : in;
  FASTOPS_CHECK(is_floating(result), op, ": expected a floating dtype");
  const DType acc = accumulator(in, result);
  problem.same(kX, p.x, x, "x");
  const Tensor out = problem.empty_like_x(x, result);
  problem.same(kOut, p.out, out, "out");
  if (dy) {
    p.backward = true;
    problem.same(kGrad, p.dy, *dy, "grad");
    check_float(op, p.dy, "grad");
  }
  add_score_args(op, problem, p, a.scores(), acc);
  add_alpha(op, problem, p, alpha, acc);
  if (!problem.empty()) finish(problem, p, x);
  return out;
}

#define MAP_ARGS                                                                                  \
  const Dims &dim, const OptTensor &mask, const OptTensor &lengths, int64_t causal, double scale, \
      const OptTensor &row_scale
#define MAP_ARGS_GIVEN {mask, lengths, causal, scale, row_scale}
using OptDtype = std::optional<ScalarType>;

MapParams params(Map map, bool zero_masked_rows = false) {
  MapParams p;
  p.map = map;
  p.zero_masked_rows = zero_masked_rows;
  return p;
}

Tensor entmax(const Tensor& x, MAP_ARGS, double alpha, const OptTensor& row_alpha,
              bool zero_masked_rows) {
  return run_map("fastops.entmax", params(Map::entmax, zero_masked_rows), x, std::nullopt, dim,
                 MAP_ARGS_GIVEN, {alpha, row_alpha}, std::nullopt);
}

Tensor entmax_backward(const Tensor& grad, const Tensor& y, MAP_ARGS, double alpha,
                       const OptTensor& row_alpha, OptDtype dtype) {
  return run_map("fastops.entmax_backward", params(Map::entmax), y, grad, dim, MAP_ARGS_GIVEN,
                 {alpha, row_alpha}, dtype);
}

Tensor entmax_alpha_backward(const Tensor& grad, const Tensor& y, MAP_ARGS, double alpha,
                             const OptTensor& row_alpha) {
  const char* op = "fastops.entmax_alpha_backward";
  Problem problem(op, y, dim);
  const DType acc = accumulator(floating(op, y, "y"), floating(op, grad, "grad"));
  MapParams p = params(Map::entmax);
  p.backward = true;
  problem.same(kX, p.x, y, "y");
  problem.same(kGrad, p.dy, grad, "grad");
  const DType own = accumulator(p.x.dtype, p.x.dtype);
  FASTOPS_CHECK(acc == own, op, ": expected grad and y of one precision");
  const Tensor out = problem.empty_rows(y, own, false);
  problem.per_row(kPerRow, p.per_row, out, "out");
  add_score_args(op, problem, p, MapArgs MAP_ARGS_GIVEN.scores(), own);
  add_alpha(op, problem, p, {alpha, row_alpha}, own);
  if (problem.empty()) {
    if (problem.rows() > 0) torch::stable::fill_(out, 0.0);
    return out;
  }
  finish(problem, p, y);
  return out;
}

Tensor entmax_loss(const Tensor& x, const Tensor& target, MAP_ARGS, double alpha,
                   const OptTensor& row_alpha, int64_t ignore_index, bool zero_masked_rows) {
  const char* op = "fastops.entmax_loss";
  Problem problem(op, x, dim);
  const DType in = floating(op, x, "x"), acc = accumulator(in, in);
  MapParams p = params(Map::entmax, zero_masked_rows);
  problem.same(kX, p.x, x, "x");
  const Tensor loss = problem.empty_rows(x, acc, false);
  problem.per_row(kPerRow, p.per_row, loss, "loss");
  add_score_args(op, problem, p, MapArgs MAP_ARGS_GIVEN.scores(), acc);
  add_alpha(op, problem, p, {alpha, row_alpha}, acc);
  add_target(op, problem, p, target, ignore_index);
  if (problem.empty()) {
    if (problem.rows() > 0) torch::stable::fill_(loss, zero_masked_rows ? 0.0 : NAN);
    return loss;
  }
  finish(problem, p, x);
  return loss;
}

Tensor entmax_loss_backward(const Tensor& grad, const Tensor& x, const Tensor& target, MAP_ARGS,
                            double alpha, const OptTensor& row_alpha, int64_t ignore_index,
                            OptDtype dtype) {
  const char* op = "fastops.entmax_loss_backward";
  Problem problem(op, x, dim);
  const DType in = floating(op, x, "x"), result = dtype ? to_dtype(*dtype, op) : in;
  const DType acc = accumulator(in, result);
  FASTOPS_CHECK(is_floating(result), op, ": expected a floating dtype");
  MapParams p = params(Map::entmax);
  p.backward = true;
  problem.same(kX, p.x, x, "x");
  const Tensor dx = problem.empty_like_x(x, result);
  problem.same(kOut, p.out, dx, "out");
  problem.per_row(kPerRow, p.per_row, grad, "grad");
  check_dtype(op, p.per_row, acc, "grad");
  add_score_args(op, problem, p, MapArgs MAP_ARGS_GIVEN.scores(), acc);
  add_alpha(op, problem, p, {alpha, row_alpha}, acc);
  add_target(op, problem, p, target, ignore_index);
  if (!problem.empty()) finish(problem, p, x);
  return dx;
}

Tensor pladis_softmax(const Tensor& x, MAP_ARGS, double lam, double alpha, bool zero_masked_rows) {
  MapParams p = params(Map::pladis, zero_masked_rows);
  p.lambda = lam;
  return run_map("fastops.pladis_softmax", p, x, std::nullopt, dim, MAP_ARGS_GIVEN,
                 {alpha, std::nullopt}, std::nullopt);
}

Tensor pladis_softmax_backward(const Tensor& grad, const Tensor& x, MAP_ARGS, double lam,
                               double alpha, OptDtype dtype) {
  MapParams p = params(Map::pladis);
  p.lambda = lam;
  return run_map("fastops.pladis_softmax_backward", p, x, grad, dim, MAP_ARGS_GIVEN,
                 {alpha, std::nullopt}, dtype);
}

Tensor softpick(const Tensor& x, MAP_ARGS, double eps, bool zero_masked_rows) {
  MapParams p = params(Map::softpick, zero_masked_rows);
  p.epsilon = eps;
  return run_map("fastops.softpick", p, x, std::nullopt, dim, MAP_ARGS_GIVEN, {}, std::nullopt);
}

Tensor softpick_backward(const Tensor& grad, const Tensor& x, MAP_ARGS, double eps,
                         OptDtype dtype) {
  MapParams p = params(Map::softpick);
  p.epsilon = eps;
  return run_map("fastops.softpick_backward", p, x, grad, dim, MAP_ARGS_GIVEN, {}, dtype);
}

template <Map map>
Tensor stablemax(const Tensor& x, MAP_ARGS, bool zero_masked_rows) {
  return run_map(map == Map::stablemax ? "fastops.stablemax" : "fastops.log_stablemax",
                 params(map, zero_masked_rows), x, std::nullopt, dim, MAP_ARGS_GIVEN, {},
                 std::nullopt);
}

template <Map map>
Tensor stablemax_backward(const Tensor& grad, const Tensor& x, MAP_ARGS, OptDtype dtype) {
  return run_map(
      map == Map::stablemax ? "fastops.stablemax_backward" : "fastops.log_stablemax_backward",
      params(map), x, grad, dim, MAP_ARGS_GIVEN, {}, dtype);
}

#define TOPK_ARGS                                                                             \
  int64_t dim, const OptTensor &mask, const OptTensor &lengths, int64_t causal, double scale, \
      const OptTensor &row_scale, bool renormalize

std::tuple<Tensor, Tensor, Tensor> softmax_topk(const Tensor& x, int64_t k, TOPK_ARGS,
                                                bool zero_masked_rows) {
  const char* op = "fastops.softmax_topk";
  Problem problem(op, x, {dim});
  const DType in = floating(op, x, "x"), acc = accumulator(in, in);
  const int64_t least = problem.rank() == 0;  // one value is all that a 0-d result can hold
  FASTOPS_CHECK(k >= least && k <= problem.n(), op, ": expected k in [", least, ", ", problem.n(),
                "], got ", k);
  TopkParams p;
  p.k = k;
  p.renormalize = renormalize;
  p.zero_masked_rows = zero_masked_rows;
  problem.same(kX, p.x, x, "x");
  const Tensor values = problem.empty_resized(x, k, in);
  const Tensor indices = problem.empty_resized(x, k, DType::i64);
  const Tensor lse = problem.empty_rows(x, acc, false);
  const int rank = problem.rank();
  const int64_t along = dim < 0 ? dim + rank : dim;
  problem.resized(kValues, p.values, values, k, "values");
  problem.resized(kIndices, p.indices, indices, k, "indices");
  p.values_stride = p.indices_stride = rank ? values.stride(along) : 1;
  problem.per_row(kLse, p.lse, lse, "lse");
  add_score_args(op, problem, p, {mask, std::nullopt, lengths, causal, scale, row_scale}, acc);
  if (k == 0 || problem.empty()) {
    if (problem.rows() > 0) torch::stable::fill_(lse, -INFINITY);
    return {values, indices, lse};
  }
  problem.finish(p.shape, p.query_stride, true);
  FASTOPS_RUN_WITH_WORKSPACE(topk, x, p);
  return {values, indices, lse};
}

Tensor softmax_topk_backward(const Tensor& grad, const Tensor& indices, const Tensor& x,
                             const Tensor& lse, TOPK_ARGS, OptDtype dtype) {
  const char* op = "fastops.softmax_topk_backward";
  Problem problem(op, x, {dim});
  const DType in = floating(op, x, "x"), result = dtype ? to_dtype(*dtype, op) : in;
  FASTOPS_CHECK(is_floating(result), op, ": expected a floating dtype");
  const DType acc = accumulator(in, result);
  const int rank = problem.rank();
  const int64_t along = dim < 0 ? dim + rank : dim;
  TopkParams p;
  p.k = rank ? grad.size(along) : 1;
  p.backward = true;
  p.renormalize = renormalize;
  problem.same(kX, p.x, x, "x");
  const Tensor dx = problem.empty_like_x(x, result);
  problem.same(kOut, p.out, dx, "out");
  problem.resized(kValues, p.values, grad, p.k, "grad");
  problem.resized(kIndices, p.indices, indices, p.k, "indices");
  FASTOPS_CHECK(is_floating(p.values.dtype), op, ": expected a floating grad");
  check_dtype(op, p.indices, DType::i64, "indices");
  p.values_stride = rank ? grad.stride(along) : 1;
  p.indices_stride = rank ? indices.stride(along) : 1;
  problem.per_row(kLse, p.lse, lse, "lse");
  check_dtype(op, p.lse, acc, "lse");
  add_score_args(op, problem, p, {mask, std::nullopt, lengths, causal, scale, row_scale}, acc);
  if (problem.empty()) return dx;
  if (p.k == 0) {
    torch::stable::fill_(dx, 0.0);
    return dx;
  }
  problem.finish(p.shape, p.query_stride, true);
  FASTOPS_RUN_WITH_WORKSPACE(topk, x, p);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("entmax", TORCH_BOX(&entmax));
  m.impl("entmax_backward", TORCH_BOX(&entmax_backward));
  m.impl("entmax_alpha_backward", TORCH_BOX(&entmax_alpha_backward));
  m.impl("entmax_loss", TORCH_BOX(&entmax_loss));
  m.impl("entmax_loss_backward", TORCH_BOX(&entmax_loss_backward));
  m.impl("pladis_softmax", TORCH_BOX(&pladis_softmax));
  m.impl("pladis_softmax_backward", TORCH_BOX(&pladis_softmax_backward));
  m.impl("softpick", TORCH_BOX(&softpick));
  m.impl("softpick_backward", TORCH_BOX(&softpick_backward));
  m.impl("stablemax", TORCH_BOX(&stablemax<Map::stablemax>));
  m.impl("stablemax_backward", TORCH_BOX(&stablemax_backward<Map::stablemax>));
  m.impl("log_stablemax", TORCH_BOX(&stablemax<Map::log_stablemax>));
  m.impl("log_stablemax_backward", TORCH_BOX(&stablemax_backward<Map::log_stablemax>));
  m.impl("softmax_topk", TORCH_BOX(&softmax_topk));
  m.impl("softmax_topk_backward", TORCH_BOX(&softmax_topk_backward));
}

}  // namespace fastops::softmax
