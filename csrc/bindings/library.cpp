// Schemas of every op: the one place they are written. Implementations register themselves from
// csrc/<family>/torch.cpp, autograd/fake/autocast/vmap rules from the Python package.
#include "bindings/torch_compat.h"

STABLE_TORCH_LIBRARY(fastops, m) {
  // causal: 0 none, 1 upper_left, 2 lower_right. algorithm: 0 auto, 1 online, 2 two_pass,
  // 3 three_pass. lse has the reduced dims removed and the accumulation dtype.
#define FASTOPS_SCORE_ARGS                                                     \
  "Tensor? mask=None, Tensor? bias=None, Tensor? lengths=None, int causal=0, " \
  "float scale=1.0, Tensor? row_scale=None"
#define FASTOPS_SOFTMAX_ARGS                        \
  "Tensor x, int[1] dim=-1, *, " FASTOPS_SCORE_ARGS \
  ", bool zero_masked_rows=False, ScalarType? dtype=None, int algorithm=0"
  m.def("softmax(" FASTOPS_SOFTMAX_ARGS ") -> Tensor");
  m.def("softmax.out(" FASTOPS_SOFTMAX_ARGS ", Tensor(a!) out) -> Tensor(a!)");
  m.def("softmax_lse(" FASTOPS_SOFTMAX_ARGS ") -> (Tensor, Tensor)");
  m.def("softmax_lse.out(" FASTOPS_SOFTMAX_ARGS
        ", Tensor(a!) out, Tensor(b!) lse) -> (Tensor(a!), Tensor(b!))");
  m.def("log_softmax(" FASTOPS_SOFTMAX_ARGS ") -> Tensor");
  m.def("log_softmax.out(" FASTOPS_SOFTMAX_ARGS ", Tensor(a!) out) -> Tensor(a!)");
  m.def("log_softmax_lse(" FASTOPS_SOFTMAX_ARGS ") -> (Tensor, Tensor)");
  m.def("log_softmax_lse.out(" FASTOPS_SOFTMAX_ARGS
        ", Tensor(a!) out, Tensor(b!) lse) -> (Tensor(a!), Tensor(b!))");
  // The plain case with the fewest arguments: boxing is most of a small call's time. No gradient,
  // so only for callers that have seen that none is wanted.
  m.def("_softmax(Tensor x, int dim) -> Tensor");
  m.def("_softmax.out(Tensor x, int dim, *, Tensor(a!) out) -> Tensor(a!)");
  m.def("_log_softmax(Tensor x, int dim) -> Tensor");
  m.def("_log_softmax.out(Tensor x, int dim, *, Tensor(a!) out) -> Tensor(a!)");
  // The result is in the accumulation dtype (fp32, or fp64 for fp64).
#define FASTOPS_LOGSUMEXP_ARGS \
  "Tensor x, int[1] dim=-1, bool keepdim=False, *, " FASTOPS_SCORE_ARGS ", int algorithm=0"
  m.def("logsumexp(" FASTOPS_LOGSUMEXP_ARGS ") -> Tensor");
  m.def("logsumexp.out(" FASTOPS_LOGSUMEXP_ARGS ", Tensor(a!) out) -> Tensor(a!)");

  // Backward. grad_lse, lse: reduced dims removed, accumulation dtype. dtype: of the result
  // (default: the dtype of y, or of x for logsumexp).
#define FASTOPS_BACKWARD_ARGS                                                    \
  "Tensor? mask=None, Tensor? lengths=None, int causal=0, float scale=1.0, "     \
  "Tensor? row_scale=None, Tensor? grad_lse=None, bool zero_masked_rows=False, " \
  "ScalarType? dtype=None"
  m.def("softmax_backward(Tensor grad, Tensor y, int[1] dim=-1, *, " FASTOPS_BACKWARD_ARGS
        ") -> Tensor");
  m.def("softmax_backward.out(Tensor grad, Tensor y, int[1] dim=-1, *, " FASTOPS_BACKWARD_ARGS
        ", Tensor(a!) out) -> Tensor(a!)");
  m.def("log_softmax_backward(Tensor grad, Tensor y, int[1] dim=-1, *, " FASTOPS_BACKWARD_ARGS
        ") -> Tensor");
  m.def("log_softmax_backward.out(Tensor grad, Tensor y, int[1] dim=-1, *, " FASTOPS_BACKWARD_ARGS
        ", Tensor(a!) out) -> Tensor(a!)");
#define FASTOPS_LSE_BACKWARD_ARGS                                            \
  "Tensor grad, Tensor x, Tensor lse, int[1] dim=-1, *, " FASTOPS_SCORE_ARGS \
  ", ScalarType? dtype=None"
  m.def("logsumexp_backward(" FASTOPS_LSE_BACKWARD_ARGS ") -> Tensor");
  m.def("logsumexp_backward.out(" FASTOPS_LSE_BACKWARD_ARGS ", Tensor(a!) out) -> Tensor(a!)");

  // The relatives of softmax. Backward of entmax takes its output y, the others x. row_alpha,
  // target, and what is per row in results: reduced dims removed (row_alpha, lse, loss:
  // accumulation dtype).
#define FASTOPS_MAP_ARGS                                                                       \
  "int[1] dim=-1, *, Tensor? mask=None, Tensor? lengths=None, int causal=0, float scale=1.0, " \
  "Tensor? row_scale=None"
#define FASTOPS_ALPHA ", float alpha=1.5, Tensor? row_alpha=None"
  m.def("entmax(Tensor x, " FASTOPS_MAP_ARGS FASTOPS_ALPHA
        ", bool zero_masked_rows=False) -> Tensor");
  m.def("entmax_backward(Tensor grad, Tensor y, " FASTOPS_MAP_ARGS FASTOPS_ALPHA
        ", ScalarType? dtype=None) -> Tensor");
  m.def("entmax_alpha_backward(Tensor grad, Tensor y, " FASTOPS_MAP_ARGS FASTOPS_ALPHA
        ") -> Tensor");
  m.def("entmax_loss(Tensor x, Tensor target, " FASTOPS_MAP_ARGS FASTOPS_ALPHA
        ", int ignore_index=-100, bool zero_masked_rows=False) -> Tensor");
  m.def("entmax_loss_backward(Tensor grad, Tensor x, Tensor target, " FASTOPS_MAP_ARGS FASTOPS_ALPHA
        ", int ignore_index=-100, ScalarType? dtype=None) -> Tensor");
  m.def("pladis_softmax(Tensor x, " FASTOPS_MAP_ARGS
        ", float lam=1.0, float alpha=1.5, bool zero_masked_rows=False) -> Tensor");
  m.def("pladis_softmax_backward(Tensor grad, Tensor x, " FASTOPS_MAP_ARGS
        ", float lam=1.0, float alpha=1.5, ScalarType? dtype=None) -> Tensor");
  m.def("softpick(Tensor x, " FASTOPS_MAP_ARGS
        ", float eps=1e-8, bool zero_masked_rows=False) -> Tensor");
  m.def("softpick_backward(Tensor grad, Tensor x, " FASTOPS_MAP_ARGS
        ", float eps=1e-8, ScalarType? dtype=None) -> Tensor");
  for (const char* name : {"stablemax", "log_stablemax"}) {
    m.def((std::string(name) + "(Tensor x, " FASTOPS_MAP_ARGS
                               ", bool zero_masked_rows=False) -> Tensor")
              .c_str());
    m.def((std::string(name) + "_backward(Tensor grad, Tensor x, " FASTOPS_MAP_ARGS
                               ", ScalarType? dtype=None) -> Tensor")
              .c_str());
  }
#define FASTOPS_TOPK_ARGS                                                                   \
  "int dim=-1, *, Tensor? mask=None, Tensor? lengths=None, int causal=0, float scale=1.0, " \
  "Tensor? row_scale=None, bool renormalize=False"
  m.def("softmax_topk(Tensor x, int k, " FASTOPS_TOPK_ARGS
        ", bool zero_masked_rows=False) -> (Tensor values, Tensor indices, Tensor lse)");
  m.def(
      "softmax_topk_backward(Tensor grad, Tensor indices, Tensor x, Tensor lse, " FASTOPS_TOPK_ARGS
      ", ScalarType? dtype=None) -> Tensor");

  // Token merging (csrc/merge/merge.h says what each argument means). tokens: int32 [1 or B, N],
  // the sources, then the destinations; without it every k-th token is a destination.
#define FASTOPS_PARTITION_ARGS                                                           \
  "Tensor? tokens=None, int num_src=0, int num_dst=0, int k=2, bool class_token=False, " \
  "bool distill_token=False, Tensor? padding_mask=None"
  m.def("token_match(Tensor metric, " FASTOPS_PARTITION_ARGS
        ") -> (Tensor scores, Tensor matches)");
  // order: 0 position, 1 reference, 2 rest.
  m.def(
      "token_plan(Tensor scores, Tensor matches, int num_tokens, int r, int "
      "num_out, " FASTOPS_PARTITION_ARGS
      ", float? threshold=None, int order=0) "
      "-> (Tensor map, Tensor offsets, Tensor perm, Tensor lengths)");
  m.def(
      "plan_compose(Tensor map, Tensor? next, int num_out) "
      "-> (Tensor map, Tensor offsets, Tensor perm)");
  m.def(
      "token_select(Tensor scores, int keep, int pool, bool class_token=False, "
      "bool distill_token=False, Tensor? padding_mask=None) -> Tensor");
  // mode: 0 mean, 1 sum, 2 max, 3 mlerp. Sizes are in the accumulation dtype.
#define FASTOPS_PLAN_ARGS "Tensor map, Tensor offsets, Tensor perm"
  m.def("merge_tokens(Tensor[] xs, " FASTOPS_PLAN_ARGS
        ", Tensor? size, int mode) -> (Tensor[] ys, Tensor size, Tensor log_size)");
  m.def("merge_tokens.out(Tensor[] xs, " FASTOPS_PLAN_ARGS
        ", Tensor? size, int mode, *, Tensor(a!)[] out, Tensor(b!) size_out, "
        "Tensor(c!) log_size_out) -> ()");
  m.def("merge_tokens_backward(Tensor[] grads, Tensor[] xs, Tensor[] ys, " FASTOPS_PLAN_ARGS
        ", Tensor? size, Tensor? merged, Tensor? grad_merged, int mode, bool size_grad) "
        "-> (Tensor[] grads, Tensor grad_size)");
  m.def("unmerge_tokens(Tensor y, " FASTOPS_PLAN_ARGS ", Tensor? residual=None) -> Tensor");
  m.def("unmerge_tokens.out(Tensor y, " FASTOPS_PLAN_ARGS
        ", Tensor? residual=None, *, Tensor(a!) out) -> ()");
  // Block-sparse attention (csrc/attention/attention.h). mask: [] or offsets, indices,
  // partial_offsets, patterns, bits and, for the backward, the four lists by key block; mask_shape:
  // block_q, block_kv, batch, heads. wanted: the gradients of q, k, v, sinks, key_bias ([B, H,
  // Skv]); empty ones for the others.
  m.def(
      "block_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor[] mask, int[] mask_shape, "
      "float scale, Tensor? sinks=None, Tensor? key_bias=None) -> (Tensor out, Tensor lse)");
  m.def(
      "block_sparse_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, "
      "Tensor v, Tensor out, Tensor lse, Tensor[] mask, int[] mask_shape, float scale, "
      "Tensor? sinks, Tensor? key_bias, bool[] wanted) -> Tensor[]");
  // N:M sparse weights: (values, indices) is the stored form of csrc/nm/nm.h. activation: 0 none,
  // 1 relu, 2 gelu, 3 silu. bad: the first group that breaks the pattern, row * groups + group, or
  // 2^63 - 1.
  m.def("nm_mask(Tensor w, int n, int m, Tensor? scores=None) -> Tensor");
  m.def("nm_prune(Tensor w, int n, int m, Tensor? scores=None) -> Tensor");
  m.def(
      "nm_compress(Tensor w, int n, int m, Tensor? mask=None) -> "
      "(Tensor values, Tensor indices, Tensor bad)");
  m.def("nm_decompress(Tensor values, Tensor indices, int n, int m, int in_features) -> Tensor");
  m.def("nm_check(Tensor indices, int n, int m, int in_features) -> Tensor");
#define FASTOPS_NM_WEIGHT "Tensor values, Tensor indices, int n, int m"
  m.def("nm_linear(Tensor x, " FASTOPS_NM_WEIGHT
        ", Tensor? bias=None, int activation=0) -> Tensor");
  m.def("nm_linear_dx(Tensor grad, " FASTOPS_NM_WEIGHT ", int in_features) -> Tensor");
  m.def("nm_linear_dw(Tensor grad, Tensor x, Tensor indices, int n, int m) -> Tensor");
  // nm_linear and nm_linear_dx are written in Python: they look for a packing of the weight, made
  // once, and call these. kind: fastops::nm::Kind. structure and source must come from _nm_pack.
  m.def("_nm_kind(Tensor values, int n, int m, int in_features, int rows, bool transposed) -> int");
  m.def(
      "_nm_pack(Tensor indices, int n, int m, int in_features, int kind) -> "
      "(Tensor structure, Tensor source)");
  m.def("_nm_gather(Tensor values, Tensor source) -> Tensor");
  m.def(
      "_nm_matmul(Tensor x, Tensor weights, Tensor structure, Tensor? bias, int out_features, "
      "int in_features, int n, int m, int kind, int activation) -> Tensor");
}
