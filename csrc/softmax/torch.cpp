// The softmax ops on tensors: validate, build Params, launch. Compiled once per op library:
// FASTOPS_BACKEND is the launcher namespace (cpu, cuda), FASTOPS_DISPATCH_KEY the torch key.
#include "bindings/torch_compat.h"
#include "core/strides.h"
#include "softmax/softmax.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "softmax/simt/emulate.h"
#endif

namespace fastops::softmax {
namespace {

using binding::empty_strided;
using binding::OptTensor;
using binding::ScalarType;
using binding::Tensor;
using binding::to_dtype;

constexpr int kMaxDims = 64;  // torch's own limit
using Dims = std::vector<int64_t>;

// The operands of a walk, in the order their strides are kept.
enum Slot { kOut, kX, kGrad, kMask, kBias, kLengths, kRowScale, kLse, kGradLse, kQuery, kSlots };

// A problem being assembled: x's shape split into row and reduced dims, and one operand per slot.
class Problem {
 public:
  Problem(const char* op, const Tensor& x, const Dims& dims) : op_(op), rank_(int(x.dim())) {
    for (int d = 0; d < rank_; ++d) size_[d] = x.size(d);
    for (int64_t d : dims) {
      const int64_t wrapped = d < 0 ? d + (rank_ ? rank_ : 1) : d;
      FASTOPS_CHECK(wrapped >= 0 && wrapped < (rank_ ? rank_ : 1), op_, ": dim ", d,
                    " out of range for a tensor of ", rank_, " dims");
      if (rank_ == 0) continue;
      FASTOPS_CHECK(!reduced_[wrapped], op_, ": dim ", d, " appears twice");
      reduced_[wrapped] = true;
    }
    FASTOPS_CHECK(!dims.empty(), op_, ": dim is empty");
    for (int d = 0; d < rank_; ++d) (reduced_[d] ? n_ : rows_) *= size_[d];
  }

  int rank() const { return rank_; }
  int64_t rows() const { return rows_; }
  int64_t n() const { return n_; }
  bool empty() const { return rows_ == 0 || n_ == 0; }

  // A tensor of x's own shape.
  void same(Slot slot, Operand& operand, const Tensor& t, const char* name) {
    FASTOPS_CHECK(t.dim() == rank_, op_, ": expected ", name, " of ", rank_, " dims, got ",
                  t.dim());
    for (int d = 0; d < rank_; ++d)
      FASTOPS_CHECK(t.size(d) == size_[d], op_, ": expected ", name, ".shape[", d,
                    "] == ", size_[d], ", got ", t.size(d));
    attach(slot, operand, t, name);
    for (int d = 0; d < rank_; ++d) stride_[d][slot] = t.stride(d);
  }

  // A tensor that broadcasts to x's shape.
  void broadcast(Slot slot, Operand& operand, const OptTensor& t, const char* name) {
    if (!t) return;
    const int offset = rank_ - int(t->dim());
    FASTOPS_CHECK(offset >= 0, op_, ": ", name, " has more dims than x");
    attach(slot, operand, *t, name);
    for (int d = offset; d < rank_; ++d) place(slot, d, *t, d - offset, name);
  }

  // One value per row: either x's rank with size 1 in the reduced dims, or broadcasting to the
  // row shape (the reduced dims removed).
  void per_row(Slot slot, Operand& operand, const OptTensor& t, const char* name) {
    if (!t) return;
    attach(slot, operand, *t, name);
    if (rank_ > 0 && t->dim() == rank_) {
      for (int d = 0; d < rank_; ++d) {
        FASTOPS_CHECK(!reduced_[d] || t->size(d) == 1, op_, ": expected ", name, ".shape[", d,
                      "] == 1 in a reduced dim, got ", t->size(d));
        place(slot, d, *t, d, name);
      }
      return;
    }
    int source = int(t->dim()) - 1;
    for (int d = rank_ - 1; d >= 0; --d)
      if (!reduced_[d] && source >= 0) place(slot, d, *t, source--, name);
    FASTOPS_CHECK(source < 0, op_, ": ", name, " has more dims than x has rows");
  }

  // The query position of a causal mask: x's second-to-last dim.
  int64_t causal(int64_t mode, bool& flag) {
    if (mode == 0) return 0;
    FASTOPS_CHECK(mode == 1 || mode == 2, op_, ": causal must be 0, 1 or 2, got ", mode);
    FASTOPS_CHECK(rank_ >= 2 && reduced_[rank_ - 1] && !reduced_[rank_ - 2], op_,
                  ": causal needs dim == -1 and at least 2 dims");
    for (int d = 0; d < rank_ - 1; ++d)
      FASTOPS_CHECK(!reduced_[d], op_, ": causal needs dim == -1");
    flag = true;
    stride_[rank_ - 2][kQuery] = 1;
    return mode == 2 ? size_[rank_ - 1] - size_[rank_ - 2] : 0;
  }

  // Coalesces and writes the shape and every attached operand's strides. The order of reduced
  // elements is kept where positions matter (lengths, causal), else follows memory.
  void finish(Shape& shape, int64_t (&query_stride)[kMaxRowDims], bool keep_order) {
    WalkDim<kSlots> rows[kMaxDims], reduced[kMaxDims];
    int row_count = 0, reduced_count = 0;
    for (int d = 0; d < rank_; ++d) {
      WalkDim<kSlots>& w = reduced_[d] ? reduced[reduced_count++] : rows[row_count++];
      w.size = size_[d];
      for (int k = 0; k < kSlots; ++k) w.stride[k] = stride_[d][k];
    }
    row_count = drop_unit_dims(rows, row_count);
    reduced_count = drop_unit_dims(reduced, reduced_count);
    const int key = operands_[kOut] ? kOut : kX;
    order_by_stride(rows, row_count, key, kX);
    if (!keep_order) order_by_stride(reduced, reduced_count, key, kX);
    row_count = merge_dims(rows, row_count);
    reduced_count = merge_dims(reduced, reduced_count);
    FASTOPS_CHECK(row_count <= kMaxRowDims && reduced_count <= kMaxReduceDims, op_, ": more than ",
                  kMaxRowDims, " row dims or ", kMaxReduceDims,
                  " reduced dims that cannot be merged; make x contiguous first");
    shape.rows = rows_;
    shape.n = n_;
    shape.row_dims = row_count;
    shape.reduce_dims = reduced_count;
    for (int i = 0; i < row_count; ++i) {
      shape.row_size[i] = rows[i].size;
      query_stride[i] = rows[i].stride[kQuery];
    }
    for (int i = 0; i < reduced_count; ++i) shape.reduce_size[i] = reduced[i].size;
    for (int k = 0; k < kSlots; ++k) {
      if (!operands_[k]) continue;
      for (int i = 0; i < row_count; ++i) operands_[k]->row_stride[i] = rows[i].stride[k];
      for (int i = 0; i < reduced_count; ++i) operands_[k]->reduce_stride[i] = reduced[i].stride[k];
    }
  }

  // A fresh tensor with x's layout (as torch.empty_like) or of the row shape.
  Tensor empty_like_x(const Tensor& x, DType dtype) const {
    if (!x.is_contiguous()) {
      // The dispatcher's empty_like keeps a dense permuted layout; only the dtype may differ.
      std::array<StableIValue, 6> stack{
          torch::stable::detail::from(x),
          torch::stable::detail::from(std::optional<ScalarType>(binding::to_scalar_type(dtype))),
          torch::stable::detail::from(std::nullopt),
          torch::stable::detail::from(std::nullopt),
          torch::stable::detail::from(std::nullopt),
          torch::stable::detail::from(std::nullopt)};
      STABLE_TORCH_ERROR_CODE_CHECK(
          torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
      return torch::stable::detail::to<Tensor>(stack[0]);
    }
    int64_t strides[kMaxDims], step = 1;
    for (int d = rank_ - 1; d >= 0; --d) {
      strides[d] = step;
      step *= size_[d] > 1 ? size_[d] : 1;
    }
    return empty_strided(rank_, size_, strides, dtype, x);
  }

  Tensor empty_rows(const Tensor& x, DType dtype, bool keepdim) const {
    int64_t sizes[kMaxDims], strides[kMaxDims], step = 1;
    int count = 0;
    for (int d = 0; d < rank_; ++d)
      if (keepdim || !reduced_[d]) sizes[count++] = reduced_[d] ? 1 : size_[d];
    for (int d = count - 1; d >= 0; --d) {
      strides[d] = step;
      step *= sizes[d] > 1 ? sizes[d] : 1;
    }
    return empty_strided(count, sizes, strides, dtype, x);
  }

  // out= of one value per row: exactly the row shape, no broadcasting.
  void check_rows(const Tensor& t, bool keepdim, const char* name) const {
    int at = 0;
    const int expected = keepdim ? rank_ : rank_ - count_reduced();
    FASTOPS_CHECK(t.dim() == expected, op_, ": expected ", name, " of ", expected, " dims, got ",
                  t.dim());
    for (int d = 0; d < rank_; ++d) {
      if (reduced_[d] && !keepdim) continue;
      const int64_t size = reduced_[d] ? 1 : size_[d];
      FASTOPS_CHECK(t.size(at) == size, op_, ": expected ", name, ".shape[", at, "] == ", size,
                    ", got ", t.size(at));
      ++at;
    }
  }

 private:
  int count_reduced() const {
    int count = 0;
    for (int d = 0; d < rank_; ++d) count += reduced_[d];
    return count;
  }

  void attach(Slot slot, Operand& operand, const Tensor& t, const char* name) {
    if (!operands_[kX] && slot == kX) {
      device_type_ = binding::device_type(t);
      device_index_ = t.get_device_index();
    } else {
      FASTOPS_CHECK(
          binding::device_type(t) == device_type_ && t.get_device_index() == device_index_, op_,
          ": ", name, " is on another device than x");
    }
    operand.data = t.data_ptr();
    operand.dtype = to_dtype(t.scalar_type(), name);
    operands_[slot] = &operand;
  }

  void place(Slot slot, int d, const Tensor& t, int source, const char* name) {
    const int64_t size = t.size(source);
    FASTOPS_CHECK(size == size_[d] || size == 1, op_, ": ", name, " of size ", size, " in dim ",
                  source, " does not broadcast to ", size_[d]);
    stride_[d][slot] = size == 1 ? 0 : t.stride(source);
  }

  const char* op_;
  int rank_;
  int64_t rows_ = 1, n_ = 1;
  int64_t size_[kMaxDims] = {};
  bool reduced_[kMaxDims] = {};
  int64_t stride_[kMaxDims][kSlots] = {};
  Operand* operands_[kSlots] = {};
  int32_t device_type_ = 0, device_index_ = 0;
};

void check_float(const char* op, const Operand& operand, const char* name) {
  FASTOPS_CHECK(!operand || is_floating(operand.dtype), op, ": expected a floating ", name);
}

void check_dtype(const char* op, const Operand& operand, DType dtype, const char* name) {
  FASTOPS_CHECK(!operand || operand.dtype == dtype, op, ": ", name, " has the wrong dtype");
}

struct ScoreArgs {
  OptTensor mask, bias, lengths;
  int64_t causal = 0;
  double scale = 1.0;
  OptTensor row_scale;
};

template <typename Params>
void add_score_args(const char* op, Problem& problem, Params& p, const ScoreArgs& a, DType acc) {
  problem.broadcast(kMask, p.mask, a.mask, "mask");
  problem.broadcast(kBias, p.bias, a.bias, "bias");
  problem.per_row(kLengths, p.lengths, a.lengths, "lengths");
  problem.per_row(kRowScale, p.row_scale, a.row_scale, "row_scale");
  p.causal_offset = problem.causal(a.causal, p.causal);
  p.scale = a.scale;
  check_dtype(op, p.mask, DType::boolean, "mask");
  check_float(op, p.bias, "bias");
  check_dtype(op, p.row_scale, acc, "row_scale");
  FASTOPS_CHECK(!p.lengths || p.lengths.dtype == DType::i32 || p.lengths.dtype == DType::i64, op,
                ": expected int32 or int64 lengths");
}

#ifdef FASTOPS_BACKEND_CUDA
template <typename Params>
void launch(Params& p, const Tensor& like, size_t (*workspace)(const Params&),
            void (*run)(const Params&, void*)) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  std::optional<Tensor> scratch;  // freed into torch's stream-ordered allocator after the launch
  if (const auto bytes = int64_t(workspace(p))) {
    const int64_t size = (bytes + 7) / 8, stride = 1;
    scratch = empty_strided(1, &size, &stride, DType::f64, like);
    p.workspace = scratch->data_ptr();
  }
  run(p, stream);
}
void launch(ForwardParams& p, const Tensor& like) {
  launch(p, like, cuda::forward_workspace, cuda::forward);
}
void launch(BackwardParams& p, const Tensor& like) {
  launch(p, like, cuda::backward_workspace, cuda::backward);
}
#elif defined(FASTOPS_BACKEND_SIMT)
void launch(ForwardParams& p, const Tensor&) { cuda::emulate(p); }
void launch(BackwardParams& p, const Tensor&) { cuda::emulate(p); }
#else
void launch(ForwardParams& p, const Tensor&) { cpu::forward(p); }
void launch(BackwardParams& p, const Tensor&) { cpu::backward(p); }
#endif

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
  launch(p, x);
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

template <Kind kind>
Tensor softmax_plain_out(const Tensor& x, int64_t dim, const Tensor& out) {
  OptTensor given = out, lse;
  run_forward(op_name<kind>(), kind, x, {dim}, {}, false, std::nullopt, 0, false, false, given,
              lse);
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
  launch(p, y);
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
