// block_sparse_attention and its derivative on tensors: validate, build Params, launch.
#include <vector>

#include "attention/attention.h"
#include "bindings/torch_compat.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "attention/simt/emulate.h"
#elif defined(FASTOPS_BACKEND_CUDA)
#include "attention/cuda/launch.h"
#endif

namespace fastops::attention {
namespace {

using binding::check_tensor;
using binding::contiguous;
using binding::empty;
using binding::OptTensor;
using binding::Tensor;
using binding::to_dtype;
using Tensors = std::vector<Tensor>;

constexpr int64_t kMostChannels = 256;

Tensor empty_as(const Tensor& t) {
  const DType dtype = to_dtype(t.scalar_type(), "tensor");
  return empty({t.size(0), t.size(1), t.size(2), t.size(3)}, dtype, t);
}

Heads make_heads(const char* op, const Tensor& t, const Problem& p, const Tensor& q,
                 std::initializer_list<int64_t> sizes, const char* name) {
  check_tensor(op, t, p.dtype, q, sizes, name);
  FASTOPS_CHECK(t.size(3) == 1 || t.stride(3) == 1 || t.numel() == 0, op, ": expected ", name,
                " with stride 1 along its last dim, got ", t.stride(3));
  return {t.data_ptr(), {t.stride(0), t.stride(1), t.stride(2)}};
}

BlockLists make_lists(const char* op, const Tensors& mask, size_t first, int64_t batch,
                      int64_t heads, int64_t rows, int64_t columns, const Tensor& q) {
  BlockLists lists;
  lists.batch = batch;
  lists.heads = heads;
  lists.rows = rows;
  lists.columns = columns;
  if (mask.empty()) return lists;
  const std::initializer_list<int64_t> ends = {batch * heads * rows + 1};
  const Tensor &indices = mask[first + 1], &patterns = mask[first + 3];
  lists.nnz = indices.numel();
  lists.num_partial = patterns.numel();
  lists.offsets = contiguous<const int64_t>(op, mask[first], DType::i64, q, ends, "mask offsets");
  lists.indices =
      contiguous<const int32_t>(op, indices, DType::i32, q, {lists.nnz}, "mask indices");
  lists.partial_offsets =
      contiguous<const int64_t>(op, mask[first + 2], DType::i64, q, ends, "mask partial_offsets");
  lists.patterns =
      contiguous<const int32_t>(op, patterns, DType::i32, q, {lists.num_partial}, "mask patterns");
  return lists;
}

bool is_block(int64_t n) { return n == 16 || n == 32 || n == 64 || n == 128; }

// mask: nothing, the lists by query and the bits, or with by_key those and the lists by key.
BlockMask make_mask(const char* op, const Tensors& mask, const std::vector<int64_t>& shape,
                    const Problem& p, const Tensor& q, bool by_key) {
  FASTOPS_CHECK(shape.size() == 4, op, ": expected mask_shape of 4 numbers, got ", shape.size());
  BlockMask m;
  m.block_q = shape[0];
  m.block_kv = shape[1];
  FASTOPS_CHECK(is_block(m.block_q) && is_block(m.block_kv), op,
                ": expected blocks of 16, 32, 64 or 128, got ", m.block_q, " and ", m.block_kv);
  FASTOPS_CHECK(mask.empty() || mask.size() == 9 || (!by_key && mask.size() == 5), op,
                ": expected a mask of 0", by_key ? "" : ", 5", " or 9 tensors, got ", mask.size());
  const int64_t batch = shape[2], heads = shape[3];
  FASTOPS_CHECK((batch == 1 || batch == p.batch) && (heads == 1 || heads == p.heads), op,
                ": expected a mask for 1 or ", p.batch, " samples and 1 or ", p.heads,
                " heads, got ", batch, " and ", heads);
  const int64_t rows = (p.seq_q + m.block_q - 1) / m.block_q;
  const int64_t columns = (p.seq_kv + m.block_kv - 1) / m.block_kv;
  m.by_query = make_lists(op, mask, 0, batch, heads, rows, columns, q);
  if (by_key) m.by_key = make_lists(op, mask, 5, batch, heads, columns, rows, q);
  if (mask.empty()) return m;
  m.num_patterns = mask[4].dim() > 0 ? mask[4].size(0) : 0;
  m.bits = contiguous<const uint32_t>(op, mask[4], DType::i32, q,
                                      {m.num_patterns, m.block_q * m.block_kv / 32}, "mask bits");
  return m;
}

void fill(const char* op, Problem& p, const Tensor& q, const Tensor& k, const Tensor& v,
          const Tensors& mask, const std::vector<int64_t>& mask_shape, double scale,
          const OptTensor& sinks, const OptTensor& key_bias, bool by_key) {
  FASTOPS_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op,
                ": expected q, k and v of 4 dims, got ", q.dim(), ", ", k.dim(), " and ", v.dim());
  p.dtype = to_dtype(q.scalar_type(), "q");
  FASTOPS_CHECK(p.dtype == DType::f32 || p.dtype == DType::f16 || p.dtype == DType::bf16, op,
                ": expected q of dtype float32, float16 or bfloat16");
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.kv_heads = k.size(1);
  p.seq_q = q.size(2);
  p.seq_kv = k.size(2);
  p.head_dim = q.size(3);
  p.value_dim = v.size(3);
  p.scale = float(scale);
  FASTOPS_CHECK(p.head_dim >= 1 && p.head_dim <= kMostChannels && p.value_dim >= 1 &&
                    p.value_dim <= kMostChannels,
                op, ": expected 1 to ", kMostChannels, " channels, got ", p.head_dim, " and ",
                p.value_dim);
  FASTOPS_CHECK(p.heads == 0 || (p.kv_heads > 0 && p.heads % p.kv_heads == 0), op, ": expected ",
                p.heads, " heads to be a multiple of k's, got ", p.kv_heads);
  p.q = make_heads(op, q, p, q, {p.batch, p.heads, p.seq_q, p.head_dim}, "q");
  p.k = make_heads(op, k, p, q, {p.batch, p.kv_heads, p.seq_kv, p.head_dim}, "k");
  p.v = make_heads(op, v, p, q, {p.batch, p.kv_heads, p.seq_kv, p.value_dim}, "v");
  p.mask = make_mask(op, mask, mask_shape, p, q, by_key);
  if (sinks) p.sinks = contiguous<const float>(op, *sinks, DType::f32, q, {p.heads}, "sinks");
  if (key_bias) {
    const int64_t each = key_bias->dim() == 3 && key_bias->size(1) == 1 ? 1 : p.heads;
    check_tensor(op, *key_bias, DType::f32, q, {p.batch, each, p.seq_kv}, "key_bias");
    p.key_bias = static_cast<const float*>(key_bias->data_ptr());
    p.key_bias_stride[0] = key_bias->stride(0);
    p.key_bias_stride[1] = each == 1 ? 0 : key_bias->stride(1);
    p.key_bias_stride[2] = key_bias->stride(2);
  }
}

std::tuple<Tensor, Tensor> block_sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const Tensors& mask,
                                                  const std::vector<int64_t>& mask_shape,
                                                  double scale, const OptTensor& sinks,
                                                  const OptTensor& key_bias) {
  const char* op = "fastops.block_sparse_attention";
  ForwardParams p;
  fill(op, p, q, k, v, mask, mask_shape, scale, sinks, key_bias, false);
  const Tensor out = empty({p.batch, p.heads, p.seq_q, p.value_dim}, p.dtype, q);
  const Tensor lse = empty({p.batch, p.heads, p.seq_q}, DType::f32, q);
  p.out = make_heads(op, out, p, q, {p.batch, p.heads, p.seq_q, p.value_dim}, "out");
  p.lse = static_cast<float*>(lse.data_ptr());
  if (out.numel() > 0) FASTOPS_RUN_WITH_WORKSPACE(forward, q, p);
  return {out, lse};
}

Tensors block_sparse_attention_backward(const Tensor& grad_out, const OptTensor& grad_lse,
                                        const Tensor& q, const Tensor& k, const Tensor& v,
                                        const Tensor& out, const Tensor& lse, const Tensors& mask,
                                        const std::vector<int64_t>& mask_shape, double scale,
                                        const OptTensor& sinks, const OptTensor& key_bias,
                                        const std::vector<bool>& wanted) {
  const char* op = "fastops.block_sparse_attention_backward";
  BackwardParams p;
  fill(op, p, q, k, v, mask, mask_shape, scale, sinks, key_bias, true);
  FASTOPS_CHECK(wanted.size() == 5, op, ": expected wanted of 5 flags, got ", wanted.size());
  FASTOPS_CHECK((sinks || !wanted[3]) && (key_bias || !wanted[4]), op,
                ": the gradient of an argument that was not given");
  p.out = make_heads(op, out, p, q, {p.batch, p.heads, p.seq_q, p.value_dim}, "out");
  p.grad_out = make_heads(op, grad_out, p, q, {p.batch, p.heads, p.seq_q, p.value_dim}, "grad_out");
  const std::initializer_list<int64_t> rows = {p.batch, p.heads, p.seq_q};
  p.lse = contiguous<const float>(op, lse, DType::f32, q, rows, "lse");
  if (grad_lse)
    p.grad_lse = contiguous<const float>(op, *grad_lse, DType::f32, q, rows, "grad_lse");

  Tensors grads;
  const Tensor* inputs[] = {&q, &k, &v};
  Heads* to[] = {&p.grad_q, &p.grad_k, &p.grad_v};
  for (int i = 0; i < 3; ++i) {
    grads.push_back(wanted[i] ? empty_as(*inputs[i]) : empty({0}, p.dtype, q));
    const Tensor& g = grads.back();
    if (wanted[i]) *to[i] = {g.data_ptr(), {g.stride(0), g.stride(1), g.stride(2)}};
  }
  grads.push_back(empty({wanted[3] ? p.heads : 0}, DType::f32, q));
  if (wanted[3]) p.grad_sinks = static_cast<float*>(grads[3].data_ptr());
  grads.push_back(wanted[4] ? empty({p.batch, p.heads, p.seq_kv}, DType::f32, q)
                            : empty({0}, DType::f32, q));
  if (wanted[4]) p.grad_key_bias = static_cast<float*>(grads[4].data_ptr());
  const Tensor delta = empty(rows, DType::f32, q);
  p.delta = static_cast<float*>(delta.data_ptr());
  if (p.heads > 0)
    FASTOPS_RUN_WITH_WORKSPACE(backward, q, p);  // the sinks have a gradient without samples too
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastops, FASTOPS_DISPATCH_KEY, m) {
  m.impl("block_sparse_attention", TORCH_BOX(&block_sparse_attention));
  m.impl("block_sparse_attention_backward", TORCH_BOX(&block_sparse_attention_backward));
}

}  // namespace fastops::attention
