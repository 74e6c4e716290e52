// The N:M ops on tensors: validate, build Params, launch. Compiled once per op library:
// FASTOPS_DISPATCH_KEY is the torch key, FASTOPS_BACKEND_* says which launchers.
#include "bindings/torch_compat.h"
#include "core/strides.h"
#include "nm/nm.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "nm/simt/emulate.h"
#endif

namespace fastops::nm {
namespace {

using binding::check_device;
using binding::empty;
using binding::OptTensor;
using binding::Tensor;
using binding::to_dtype;

constexpr int kMaxDims = 64;  // torch's own limit

DType weight_dtype(const char* op, const Tensor& t, const char* name) {
  const DType dtype = to_dtype(t.scalar_type(), name);
  FASTOPS_CHECK(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, op,
                ": expected ", name, " of dtype float32, float16 or bfloat16");
  return dtype;
}

Weight weight_of(const char* op, int64_t out, int64_t in, int64_t n, int64_t m) {
  FASTOPS_CHECK(1 <= n && n <= m && m <= kMaxGroup, op,
                ": expected a pattern N:M with 1 <= N <= M <= ", kMaxGroup, ", got ", n, ":", m);
  FASTOPS_CHECK(in % m == 0, op, ": expected in_features divisible by M = ", m, ", got ", in);
  Weight w{{int(n), int(m)}, out, in};
  FASTOPS_CHECK(out < INT32_MAX && in < INT32_MAX - kMaxGroup && out * w.kept() < INT32_MAX, op,
                ": a weight of ", out, " x ", in, " is too large");
  return w;
}

Matrix matrix(const char* op, const Tensor& t, const char* name) {
  FASTOPS_CHECK(t.dim() == 2, op, ": expected ", name, " of 2 dims, got ", t.dim());
  return {t.data_ptr(), to_dtype(t.scalar_type(), name), t.stride(0), t.stride(1)};
}

// A second matrix of the shape of w.
Matrix matching(const char* op, const OptTensor& t, const Tensor& w, const char* name) {
  if (!t) return {};
  check_device(op, *t, w, name);
  const Matrix a = matrix(op, *t, name);
  FASTOPS_CHECK(t->size(0) == w.size(0) && t->size(1) == w.size(1), op, ": expected ", name,
                " of the shape of w");
  return a;
}

const uint8_t* indices_of(const char* op, const Tensor& indices, const Weight& w,
                          const Tensor& like) {
  check_device(op, indices, like, "indices");
  FASTOPS_CHECK(to_dtype(indices.scalar_type(), "indices") == DType::u8 &&
                    indices.is_contiguous() && indices.dim() == 2,
                op, ": expected indices of dtype uint8, contiguous, 2 dims");
  FASTOPS_CHECK(indices.size(0) == w.out && indices.size(1) == w.index_row_bytes(), op,
                ": expected indices of shape [", w.out, ", ", w.index_row_bytes(), "], got [",
                indices.size(0), ", ", indices.size(1), "]");
  return static_cast<const uint8_t*>(indices.data_ptr());
}

// Activations of any strides; leading dims merged where that is possible.
Rows rows_of(const char* op, const Tensor& x, int64_t features, const char* name) {
  Rows rows;
  const int dim = int(x.dim());
  FASTOPS_CHECK(dim >= 1, op, ": expected ", name, " of at least 1 dim");
  FASTOPS_CHECK(x.size(dim - 1) == features, op, ": expected ", name, ".shape[-1] == ", features,
                ", got ", x.size(dim - 1));
  rows.data = x.data_ptr();
  rows.dtype = weight_dtype(op, x, name);
  rows.features = features;
  rows.feature_stride = x.stride(dim - 1);
  WalkDim<1> walk[kMaxDims];
  rows.count = 1;
  for (int d = 0; d < dim - 1; ++d) {
    walk[d] = {x.size(d), {x.stride(d)}};
    rows.count *= x.size(d);
  }
  int count = merge_dims(walk, drop_unit_dims(walk, dim - 1));
  FASTOPS_CHECK(count <= kMaxRowDims, op, ": more than ", kMaxRowDims, " leading dims of ", name,
                " that cannot be merged; make it contiguous first");
  rows.dims = count;
  for (int d = 0; d < count; ++d) {
    rows.size[d] = walk[d].size;
    rows.stride[d] = walk[d].stride[0];
  }
  return rows;
}

// x's shape with another last dim.
Tensor empty_like_rows(const Tensor& x, int64_t features) {
  int64_t size[kMaxDims], stride[kMaxDims], step = 1;
  const int dim = int(x.dim());
  for (int d = 0; d < dim; ++d) size[d] = d + 1 < dim ? x.size(d) : features;
  for (int d = dim - 1; d >= 0; --d) {
    stride[d] = step;
    step *= size[d] > 1 ? size[d] : 1;
  }
  return binding::empty_strided(dim, size, stride, to_dtype(x.scalar_type(), "x"), x);
}

// ---- pruning and compression ------------------------------------------------------------------

Tensor run_select(const char* op, const Tensor& w, int64_t n, int64_t m, const OptTensor& scores,
                  bool mask) {
  SelectParams p;
  p.w = matrix(op, w, "w");
  p.weight = weight_of(op, w.size(0), w.size(1), n, m);
  weight_dtype(op, w, "w");
  p.scores = matching(op, scores, w, "scores");
  if (scores) weight_dtype(op, *scores, "scores");
  Tensor result = empty({w.size(0), w.size(1)}, mask ? DType::boolean : p.w.dtype, w);
  if (mask) p.mask = static_cast<uint8_t*>(result.data_ptr());
  else p.pruned = result.data_ptr();
  if (w.numel()) FASTOPS_RUN(select, w, p);
  return result;
}

Tensor nm_mask(const Tensor& w, int64_t n, int64_t m, const OptTensor& scores) {
  return run_select("fastops.nm_mask", w, n, m, scores, true);
}

Tensor nm_prune(const Tensor& w, int64_t n, int64_t m, const OptTensor& scores) {
  return run_select("fastops.nm_prune", w, n, m, scores, false);
}

std::tuple<Tensor, Tensor, Tensor> nm_compress(const Tensor& w, int64_t n, int64_t m,
                                               const OptTensor& mask) {
  const char* op = "fastops.nm_compress";
  CompressParams p;
  p.w = matrix(op, w, "w");
  p.weight = weight_of(op, w.size(0), w.size(1), n, m);
  weight_dtype(op, w, "w");
  p.mask = matching(op, mask, w, "mask");
  FASTOPS_CHECK(!mask || p.mask.dtype == DType::boolean, op, ": expected a boolean mask");
  Tensor values = empty({p.weight.out, p.weight.kept()}, p.w.dtype, w);
  Tensor indices = empty({p.weight.out, p.weight.index_row_bytes()}, DType::u8, w);
  Tensor bad = empty({1}, DType::i64, w);
  p.values = values.data_ptr();
  p.indices = static_cast<uint8_t*>(indices.data_ptr());
  p.bad = static_cast<int64_t*>(bad.data_ptr());
  FASTOPS_RUN(compress, w, p);
  return {values, indices, bad};
}

Tensor nm_decompress(const Tensor& values, const Tensor& indices, int64_t n, int64_t m,
                     int64_t in_features) {
  const char* op = "fastops.nm_decompress";
  DecompressParams p;
  FASTOPS_CHECK(values.dim() == 2 && values.is_contiguous(), op,
                ": expected values contiguous, of 2 dims");
  p.weight = weight_of(op, values.size(0), in_features, n, m);
  FASTOPS_CHECK(values.size(1) == p.weight.kept(), op,
                ": expected values.shape[1] == ", p.weight.kept(), ", got ", values.size(1));
  p.dtype = weight_dtype(op, values, "values");
  p.values = values.data_ptr();
  p.indices = indices_of(op, indices, p.weight, values);
  Tensor w = empty({p.weight.out, in_features}, p.dtype, values);
  p.w = w.data_ptr();
  if (w.numel()) FASTOPS_RUN(decompress, values, p);
  return w;
}

Tensor nm_check(const Tensor& indices, int64_t n, int64_t m, int64_t in_features) {
  const char* op = "fastops.nm_check";
  CheckParams p;
  FASTOPS_CHECK(indices.dim() == 2, op, ": expected indices of 2 dims");
  p.weight = weight_of(op, indices.size(0), in_features, n, m);
  p.indices = indices_of(op, indices, p.weight, indices);
  Tensor bad = empty({1}, DType::i64, indices);
  p.bad = static_cast<int64_t*>(bad.data_ptr());
  FASTOPS_RUN(check, indices, p);
  return bad;
}

// ---- products ---------------------------------------------------------------------------------

int64_t nm_kind(const Tensor& values, int64_t n, int64_t m, int64_t in_features, int64_t rows,
                bool transposed) {
  const char* op = "fastops._nm_kind";
  const Weight w = weight_of(op, values.size(0), in_features, n, m);
  const DType dtype = weight_dtype(op, values, "values");
  return int64_t(FASTOPS_RUN(choose_kind, values, w, dtype, rows, transposed));
}

Kind kind_of(const char* op, int64_t kind) {
  FASTOPS_CHECK(kind >= 0 && kind <= int64_t(Kind::pair_panels), op, ": unknown packing ", kind);
  return Kind(kind);
}

std::tuple<Tensor, Tensor> nm_pack(const Tensor& indices, int64_t n, int64_t m, int64_t in_features,
                                   int64_t kind) {
  const char* op = "fastops._nm_pack";
  PackParams p;
  FASTOPS_CHECK(indices.dim() == 2, op, ": expected indices of 2 dims");
  p.weight = weight_of(op, indices.size(0), in_features, n, m);
  p.kind = kind_of(op, kind);
  p.indices = indices_of(op, indices, p.weight, indices);
  const PackSizes sizes = FASTOPS_RUN(pack_sizes, indices, p);
  FASTOPS_CHECK(sizes.source < INT32_MAX, op, ": the weight is too large");
  Tensor structure = empty({sizes.structure}, DType::u8, indices);
  Tensor source = empty({sizes.source}, DType::i32, indices);
  p.structure = static_cast<uint8_t*>(structure.data_ptr());
  p.source = static_cast<int32_t*>(source.data_ptr());
  if (sizes.source) FASTOPS_RUN(pack, indices, p);
  return {structure, source};
}

Tensor nm_gather(const Tensor& values, const Tensor& source) {
  const char* op = "fastops._nm_gather";
  GatherParams p;
  FASTOPS_CHECK(values.is_contiguous() && source.is_contiguous() && source.dim() == 1 &&
                    to_dtype(source.scalar_type(), "source") == DType::i32,
                op, ": expected contiguous values and a source of int32");
  check_device(op, source, values, "source");
  p.dtype = weight_dtype(op, values, "values");
  p.values = values.data_ptr();
  p.count = values.numel();
  p.source = static_cast<const int32_t*>(source.data_ptr());
  p.size = source.numel();
  Tensor weights = empty({p.size}, p.dtype, values);
  p.weights = weights.data_ptr();
  if (p.size) FASTOPS_RUN(gather, values, p);
  return weights;
}

Tensor nm_matmul(const Tensor& x, const Tensor& weights, const Tensor& structure,
                 const OptTensor& bias, int64_t out_features, int64_t in_features, int64_t n,
                 int64_t m, int64_t kind, int64_t activation) {
  const char* op = "fastops.nm_linear";
  MatmulParams p;
  p.weight = weight_of(op, out_features, in_features, n, m);
  p.kind = kind_of(op, kind);
  p.x = rows_of(op, x, p.transposed() ? out_features : in_features, "x");
  FASTOPS_CHECK(activation >= 0 && activation <= int64_t(Activation::silu), op,
                ": unknown activation ", activation);
  p.activation = Activation(activation);
  check_device(op, weights, x, "the weight");
  check_device(op, structure, x, "the weight");
  FASTOPS_CHECK(weight_dtype(op, weights, "the weight") == p.x.dtype, op,
                ": x and the weight differ in dtype");
  FASTOPS_CHECK(weights.is_contiguous() && structure.is_contiguous() &&
                    to_dtype(structure.scalar_type(), "structure") == DType::u8,
                op, ": expected a packing made by _nm_pack");
  int64_t structure_bytes = p.weight.out * p.weight.index_row_bytes();
  int64_t weight_count = p.weight.out * p.weight.kept();
  if (p.kind != Kind::stored && p.kind != Kind::stored_transposed) {
    PackParams pack{p.weight, p.kind};
    const PackSizes sizes = FASTOPS_RUN(pack_sizes, x, pack);
    structure_bytes = sizes.structure;
    weight_count = sizes.source;
  }
  FASTOPS_CHECK(structure.numel() == structure_bytes && weights.numel() == weight_count, op,
                ": the packing is not of this weight");
  p.weights = weights.data_ptr();
  p.structure = static_cast<const uint8_t*>(structure.data_ptr());
  if (bias) {
    check_device(op, *bias, x, "bias");
    FASTOPS_CHECK(bias->dim() == 1 && bias->size(0) == p.outputs() && bias->is_contiguous(), op,
                  ": expected bias contiguous, of shape [", p.outputs(), "]");
    FASTOPS_CHECK(weight_dtype(op, *bias, "bias") == p.x.dtype, op, ": x and bias differ in dtype");
    p.bias = bias->data_ptr();
  }
  Tensor y = empty_like_rows(x, p.outputs());
  p.y = y.data_ptr();
  if (y.numel()) FASTOPS_RUN_WITH_WORKSPACE(matmul, x, p);
  return y;
}

Tensor nm_linear_dw(const Tensor& grad, const Tensor& x, const Tensor& indices, int64_t n,
                    int64_t m) {
  const char* op = "fastops.nm_linear_dw";
  FASTOPS_CHECK(x.dim() >= 1 && grad.dim() == x.dim() && indices.dim() == 2, op,
                ": expected grad and x of as many dims, indices of 2");
  for (int d = 0; d + 1 < x.dim(); ++d)
    FASTOPS_CHECK(grad.size(d) == x.size(d), op, ": expected grad.shape[", d, "] == ", x.size(d),
                  ", got ", grad.size(d));
  WeightGradParams p;
  p.weight = weight_of(op, indices.size(0), x.size(int(x.dim()) - 1), n, m);
  p.indices = indices_of(op, indices, p.weight, x);
  p.x = rows_of(op, x, p.weight.in, "x");
  p.grad = rows_of(op, grad, p.weight.out, "grad");
  check_device(op, grad, x, "grad");
  FASTOPS_CHECK(p.grad.dtype == p.x.dtype, op, ": grad and x differ in dtype");
  Tensor dw = empty({p.weight.out, p.weight.kept()}, p.x.dtype, x);
  p.dw = dw.data_ptr();
  if (dw.numel()) FASTOPS_RUN(weight_grad, x, p);
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("nm_mask", TORCH_BOX(&nm_mask));
  m.impl("nm_prune", TORCH_BOX(&nm_prune));
  m.impl("nm_compress", TORCH_BOX(&nm_compress));
  m.impl("nm_decompress", TORCH_BOX(&nm_decompress));
  m.impl("nm_check", TORCH_BOX(&nm_check));
  m.impl("_nm_kind", TORCH_BOX(&nm_kind));
  m.impl("_nm_pack", TORCH_BOX(&nm_pack));
  m.impl("_nm_gather", TORCH_BOX(&nm_gather));
  m.impl("_nm_matmul", TORCH_BOX(&nm_matmul));
  m.impl("nm_linear_dw", TORCH_BOX(&nm_linear_dw));
}

}  // namespace fastops::nm
