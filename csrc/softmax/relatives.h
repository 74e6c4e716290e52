// The relatives of softmax as their kernels see them: other maps from scores to weights, and
// softmax with top-k. Rows, scores and coalescing are those of softmax/softmax.h.
//
// With s the scores of the elements that take part, m their maximum and [.]+ = max(., 0):
//
//   entmax         y = [(alpha - 1) (s - m) - tau]+ ^ (1 / (alpha - 1)), tau such that y sums to 1;
//                  alpha = 1 is softmax, alpha = 2 sparsemax
//   pladis         y = softmax(s) + lambda (entmax(s) - softmax(s))
//   softpick       y = [u]+ / (sum |u| + epsilon), u = exp(s - c) - exp(-c), c = max(m, 0)
//   stablemax      y = t / sum t, t = s + 1 (s >= 0), 1 / (1 - s) (s < 0)
//   log_stablemax  y = log t - log(sum t)
//
// What does not take part is 0 (-inf for log_stablemax). A row with a NaN or +inf is NaN.
#pragma once

#include "softmax/softmax.h"

namespace fastops::softmax {

enum class Map : int8_t { entmax, pladis, softpick, stablemax, log_stablemax };

// Forward:  out = y. With `target`: loss = (1 - sum y^alpha) / (alpha (alpha - 1)) + <y, s> - s_t
//           instead (the Fenchel-Young loss of entmax; cross entropy for alpha = 1).
// Backward: out = dx, from dy; x is y for entmax and x for the others. With `target`:
//           out = scale * dloss * (y - one_hot(t)), x is x, and there is no dy.
//           With per_row and no out: per_row = d(dy . y) / d alpha.
struct MapParams {
  Shape shape;
  Map map = Map::entmax;
  bool backward = false;
  bool zero_masked_rows = false;  // a row without a score above -inf gives 0 (-inf), not NaN
  Operand x, out, dy;
  Operand mask, lengths, row_scale;  // as in ForwardParams
  Operand bias;                      // absent, for the code shared with softmax
  Operand row_alpha;                 // optional, per row, accumulation type; alpha elsewhere
  Operand target;                    // optional, per row, i64
  Operand per_row;                   // loss, dloss or dalpha, accumulation type
  double scale = 1.0;
  double alpha = 1.5;
  double lambda = 1.0;
  double epsilon = 0.0;
  int64_t ignore_index = -1;  // rows of this target have no loss and no gradient
  bool causal = false;
  int64_t query_stride[kMaxRowDims] = {};
  int64_t causal_offset = 0;
  void* workspace = nullptr;
};

// softmax of the k greatest scores of each row, in descending order, ties by lowest index; over all
// scores or (renormalize) over the k. Backward: dx from dvalues, indices, x and lse.
struct TopkParams {
  Shape shape;
  int64_t k = 0;  // 1 <= k <= n
  bool backward = false;
  bool renormalize = false;
  bool zero_masked_rows = false;
  Operand x;
  Operand values, indices;  // dvalues in backward; `k_stride` apart
  int64_t values_stride = 0, indices_stride = 0;
  Operand lse;  // per row, accumulation type: of all scores, or of the k (renormalize)
  Operand out;  // dx
  Operand mask, lengths, row_scale, bias;
  double scale = 1.0;
  bool causal = false;
  int64_t query_stride[kMaxRowDims] = {};
  int64_t causal_offset = 0;
  void* workspace = nullptr;
};

namespace cpu {
void map(const MapParams& p);
void topk(const TopkParams& p);
}  // namespace cpu

namespace cuda {
size_t map_workspace(const MapParams& p);
size_t topk_workspace(const TopkParams& p);
void map(const MapParams& p, void* stream);
void topk(const TopkParams& p, void* stream);
}  // namespace cuda

}  // namespace fastops::softmax
