// Assembling a problem of the family from tensors: what the bindings (torch.cpp and those of the
// relatives) share. Internal linkage: each op library compiles its own.
#pragma once

#include "bindings/torch_compat.h"
#include "core/strides.h"
#include "softmax/softmax.h"

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
enum Slot {
  kOut,
  kX,
  kGrad,
  kMask,
  kBias,
  kLengths,
  kRowScale,
  kLse,
  kGradLse,
  kQuery,
  kSlots,
  // The relatives have no bias and no lse of their own.
  kAlpha = kBias,
  kTarget = kGradLse,
  kPerRow = kLse,
  kValues = kGrad,
  kIndices = kBias,
};

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

  // A tensor of x's shape, but `size` long in the only reduced dim.
  void resized(Slot slot, Operand& operand, const Tensor& t, int64_t size, const char* name) {
    FASTOPS_CHECK(t.dim() == rank_, op_, ": expected ", name, " of ", rank_, " dims, got ",
                  t.dim());
    for (int d = 0; d < rank_; ++d) {
      const int64_t expected = reduced_[d] ? size : size_[d];
      FASTOPS_CHECK(t.size(d) == expected, op_, ": expected ", name, ".shape[", d,
                    "] == ", expected, ", got ", t.size(d));
    }
    attach(slot, operand, t, name);
    for (int d = 0; d < rank_; ++d) stride_[d][slot] = t.stride(d);
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
      return binding::fresh(torch::stable::detail::to<Tensor>(stack[0]), rows_ * n_, dtype);
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

  // A fresh contiguous tensor of x's shape, but `size` long in the only reduced dim.
  Tensor empty_resized(const Tensor& x, int64_t size, DType dtype) const {
    int64_t sizes[kMaxDims], strides[kMaxDims], step = 1;
    for (int d = rank_ - 1; d >= 0; --d) {
      sizes[d] = reduced_[d] ? size : size_[d];
      strides[d] = step;
      step *= sizes[d] > 1 ? sizes[d] : 1;
    }
    return empty_strided(rank_, sizes, strides, dtype, x);
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

}  // namespace
}  // namespace fastops::softmax
