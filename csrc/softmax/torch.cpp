// The softmax ops on tensors: validate, build Params, launch. Compiled once per op library:
// FASTOPS_BACKEND is the launcher namespace (cpu, cuda), FASTOPS_DISPATCH_KEY the torch key.
#include "softmax/problem.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "softmax/simt/emulate.h"
#endif

namespace fastops::softmax {
namespace {

// `out` and `lse` are written where given, allocated where wanted and not given.
void run_forward(const char* op, Kind kind, const Tensor& x, const Dims& dims, const ScoreArgs& a,
                 bool zero_masked_rows, std::optional<ScalarType> dtype, int64_t algorithm,
                 bool want_lse, bool keepdim, OptTensor& out, OptTensor& lse) {
  Problem problem(op, x, dims);
  const DType in = to_dtype(x.scalar_type(), op);
  FASTOPS_CHECK(is_floating(in), op, ": expected a floating x");
  const bool writes_out = kind != Kind::logsumexp;
  DType result = in;
  if (dtype) result = to_dtype(*dtype, op);
  if (out && writes_out) {
    const DType given = to_dtype(out->scalar_type(), op);
    FASTOPS_CHECK(!dtype || result == given, op, ": dtype and out.dtype differ");
    result = given;
  }
  FASTOPS_CHECK(is_floating(result), op, ": expected a floating dtype");
  FASTOPS_CHECK(algorithm >= 0 && algorithm <= 3, op, ": algorithm must be 0 to 3");
  const DType acc = accumulator(in, result);

  ForwardParams p;
  p.kind = kind;
  p.algorithm = static_cast<Algorithm>(algorithm);
  p.zero_masked_rows = zero_masked_rows;
  problem.same(kX, p.x, x, "x");
  if (writes_out) {
    if (!out) out = problem.empty_like_x(x, result);
    problem.same(kOut, p.out, *out, "out");
  }
  if (want_lse) {
    if (lse) problem.check_rows(*lse, keepdim, "lse");
    else lse = problem.empty_rows(x, acc, keepdim);
    problem.per_row(kLse, p.lse, lse, "lse");
    FASTOPS_CHECK(p.lse.dtype == acc, op, ": lse must have the accumulation dtype");
  }
  add_score_args(op, problem, p, a, acc);
  if (problem.empty()) {
    if (want_lse && problem.rows() > 0) torch::stable::fill_(*lse, -INFINITY);
    return;
  }
  problem.finish(p.shape, p.query_stride, p.lengths || p.causal);
  FASTOPS_RUN_WITH_WORKSPACE(forward, x, p);
}

#define SOFTMAX_ARGS                                                                      \
  const Tensor &x, const Dims &dim, const OptTensor &mask, const OptTensor &bias,         \
      const OptTensor &lengths, int64_t causal, double scale, const OptTensor &row_scale, \
      bool zero_masked_rows, std::optional<ScalarType> dtype, int64_t algorithm

template <Kind kind>
constexpr const char* op_name() {
  return kind == Kind::softmax       ? "fastops.softmax"
         : kind == Kind::log_softmax ? "fastops.log_softmax"
                                     : "fastops.logsumexp";
}

template <Kind kind>
Tensor softmax(SOFTMAX_ARGS) {
  OptTensor out, lse;
  run_forward(op_name<kind>(), kind, x, dim, {mask, bias, lengths, causal, scale, row_scale},
              zero_masked_rows, dtype, algorithm, false, false, out, lse);
  return *out;
}

template <Kind kind>
Tensor softmax_out(SOFTMAX_ARGS, const Tensor& out) {
  OptTensor given = out, lse;
  run_forward(op_name<kind>(), kind, x, dim, {mask, bias, lengths, causal, scale, row_scale},
              zero_masked_rows, dtype, algorithm, false, false, given, lse);
  return out;
}

template <Kind kind>
Tensor softmax_plain(const Tensor& x, int64_t dim) {
  OptTensor out, lse;
  run_forward(op_name<kind>(), kind, x, {dim}, {}, false, std::nullopt, 0, false, false, out, lse);
  return *out;
}

// fastops.softmax leaves what it would check of out to this: what it refuses is looked at again
// there, and said in full.
template <Kind kind>
Tensor softmax_plain_out(const Tensor& x, int64_t dim, const Tensor& out) {
  const char* op = op_name<kind>();
  FASTOPS_CHECK(out.scalar_type() == x.scalar_type(), op, ": out is of another dtype than x");
  FASTOPS_CHECK(x.is_contiguous() && out.is_contiguous(), op, ": x or out is not contiguous");
  const auto* from = static_cast<const char*>(x.data_ptr());
  const auto* to = static_cast<const char*>(out.data_ptr());
  const auto bytes = x.numel() * int64_t(size_of(to_dtype(x.scalar_type(), op)));
  FASTOPS_CHECK(to == from || to + bytes <= from || from + bytes <= to, op,
                ": out and x share memory");
  OptTensor given = out, lse;
  run_forward(op, kind, x, {dim}, {}, false, std::nullopt, 0, false, false, given, lse);
  return out;
}

template <Kind kind>
std::tuple<Tensor, Tensor> softmax_lse(SOFTMAX_ARGS) {
  OptTensor out, lse;
  run_forward(op_name<kind>(), kind, x, dim, {mask, bias, lengths, causal, scale, row_scale},
              zero_masked_rows, dtype, algorithm, true, false, out, lse);
  return {*out, *lse};
}

template <Kind kind>
std::tuple<Tensor, Tensor> softmax_lse_out(SOFTMAX_ARGS, const Tensor& out, const Tensor& lse) {
  OptTensor given = out, given_lse = lse;
  run_forward(op_name<kind>(), kind, x, dim, {mask, bias, lengths, causal, scale, row_scale},
              zero_masked_rows, dtype, algorithm, true, false, given, given_lse);
  return {out, lse};
}

#define LOGSUMEXP_ARGS                                                                          \
  const Tensor &x, const Dims &dim, bool keepdim, const OptTensor &mask, const OptTensor &bias, \
      const OptTensor &lengths, int64_t causal, double scale, const OptTensor &row_scale,       \
      int64_t algorithm

Tensor logsumexp(LOGSUMEXP_ARGS) {
  OptTensor out, lse;
  run_forward(op_name<Kind::logsumexp>(), Kind::logsumexp, x, dim,
              {mask, bias, lengths, causal, scale, row_scale}, false, std::nullopt, algorithm, true,
              keepdim, out, lse);
  return *lse;
}

Tensor logsumexp_out(LOGSUMEXP_ARGS, const Tensor& out) {
  OptTensor none, lse = out;
  run_forward(op_name<Kind::logsumexp>(), Kind::logsumexp, x, dim,
              {mask, bias, lengths, causal, scale, row_scale}, false, std::nullopt, algorithm, true,
              keepdim, none, lse);
  return out;
}

// `y` is the saved output, or x for logsumexp; `grad` then is one value per row.
Tensor run_backward(const char* op, Kind kind, const Tensor& grad, const Tensor& y,
                    const Dims& dims, const ScoreArgs& a, const OptTensor& grad_lse,
                    const OptTensor& lse, bool zero_masked_rows, std::optional<ScalarType> dtype,
                    const OptTensor& given) {
  Problem problem(op, y, dims);
  const DType in = to_dtype(y.scalar_type(), op);
  DType result = dtype ? to_dtype(*dtype, op) : in;
  if (given) result = to_dtype(given->scalar_type(), op);
  FASTOPS_CHECK(is_floating(in) && is_floating(result), op, ": expected floating tensors");
  const DType acc = accumulator(in, result);

  BackwardParams p;
  p.kind = kind;
  p.zero_masked_rows = zero_masked_rows;
  problem.same(kX, p.y, y, kind == Kind::logsumexp ? "x" : "y");
  const Tensor dx = given ? *given : problem.empty_like_x(y, result);
  problem.same(kOut, p.dx, dx, "out");
  if (kind == Kind::logsumexp) {
    problem.per_row(kGradLse, p.dlse, grad, "grad");
    problem.per_row(kLse, p.lse, lse, "lse");
    check_dtype(op, p.lse, acc, "lse");
  } else {
    problem.same(kGrad, p.dy, grad, "grad");
    check_float(op, p.dy, "grad");
    problem.per_row(kGradLse, p.dlse, grad_lse, "grad_lse");
  }
  check_dtype(op, p.dlse, acc, "grad_lse");
  add_score_args(op, problem, p, a, acc);
  if (problem.empty()) return dx;
  problem.finish(p.shape, p.query_stride, p.lengths || p.causal);
  FASTOPS_RUN_WITH_WORKSPACE(backward, y, p);
  return dx;
}

#define BACKWARD_ARGS                                                                     \
  const Tensor &grad, const Tensor &y, const Dims &dim, const OptTensor &mask,            \
      const OptTensor &lengths, int64_t causal, double scale, const OptTensor &row_scale, \
      const OptTensor &grad_lse, bool zero_masked_rows, std::optional<ScalarType> dtype

template <Kind kind>
constexpr const char* backward_name() {
  return kind == Kind::softmax ? "fastops.softmax_backward" : "fastops.log_softmax_backward";
}

template <Kind kind>
Tensor softmax_backward(BACKWARD_ARGS) {
  return run_backward(backward_name<kind>(), kind, grad, y, dim,
                      {mask, std::nullopt, lengths, causal, scale, row_scale}, grad_lse,
                      std::nullopt, zero_masked_rows, dtype, std::nullopt);
}

template <Kind kind>
Tensor softmax_backward_out(BACKWARD_ARGS, const Tensor& out) {
  return run_backward(backward_name<kind>(), kind, grad, y, dim,
                      {mask, std::nullopt, lengths, causal, scale, row_scale}, grad_lse,
                      std::nullopt, zero_masked_rows, dtype, out);
}

#define LSE_BACKWARD_ARGS                                                                         \
  const Tensor &grad, const Tensor &x, const Tensor &lse, const Dims &dim, const OptTensor &mask, \
      const OptTensor &bias, const OptTensor &lengths, int64_t causal, double scale,              \
      const OptTensor &row_scale, std::optional<ScalarType> dtype

Tensor logsumexp_backward(LSE_BACKWARD_ARGS) {
  return run_backward("fastops.logsumexp_backward", Kind::logsumexp, grad, x, dim,
                      {mask, bias, lengths, causal, scale, row_scale}, std::nullopt, lse, false,
                      dtype, std::nullopt);
}

Tensor logsumexp_backward_out(LSE_BACKWARD_ARGS, const Tensor& out) {
  return run_backward("fastops.logsumexp_backward", Kind::logsumexp, grad, x, dim,
                      {mask, bias, lengths, causal, scale, row_scale}, std::nullopt, lse, false,
                      dtype, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("softmax", TORCH_BOX(&softmax<Kind::softmax>));
  m.impl("softmax.out", TORCH_BOX(&softmax_out<Kind::softmax>));
  m.impl("_softmax", TORCH_BOX(&softmax_plain<Kind::softmax>));
  m.impl("_softmax.out", TORCH_BOX(&softmax_plain_out<Kind::softmax>));
  m.impl("_log_softmax", TORCH_BOX(&softmax_plain<Kind::log_softmax>));
  m.impl("_log_softmax.out", TORCH_BOX(&softmax_plain_out<Kind::log_softmax>));
  m.impl("softmax_lse", TORCH_BOX(&softmax_lse<Kind::softmax>));
  m.impl("softmax_lse.out", TORCH_BOX(&softmax_lse_out<Kind::softmax>));
  m.impl("log_softmax", TORCH_BOX(&softmax<Kind::log_softmax>));
  m.impl("log_softmax.out", TORCH_BOX(&softmax_out<Kind::log_softmax>));
  m.impl("log_softmax_lse", TORCH_BOX(&softmax_lse<Kind::log_softmax>));
  m.impl("log_softmax_lse.out", TORCH_BOX(&softmax_lse_out<Kind::log_softmax>));
  m.impl("logsumexp", TORCH_BOX(&logsumexp));
  m.impl("logsumexp.out", TORCH_BOX(&logsumexp_out));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward<Kind::softmax>));
  m.impl("softmax_backward.out", TORCH_BOX(&softmax_backward_out<Kind::softmax>));
  m.impl("log_softmax_backward", TORCH_BOX(&softmax_backward<Kind::log_softmax>));
  m.impl("log_softmax_backward.out", TORCH_BOX(&softmax_backward_out<Kind::log_softmax>));
  m.impl("logsumexp_backward", TORCH_BOX(&logsumexp_backward));
  m.impl("logsumexp_backward.out", TORCH_BOX(&logsumexp_backward_out));
}

}  // namespace fastops::softmax
