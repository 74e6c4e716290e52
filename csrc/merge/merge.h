// Token merging as its kernels see it: plain structs of raw pointers and int64 strides (in
// elements), and the launchers of each backend. No torch here; csrc/merge/torch_*.cpp fill these
// in.
//
//   match   for every source token its most similar destination token, by cosine
//   plan    which sources merge, and the row of the output that every token goes to
//   merge   rows of the output from the tokens of each        unmerge   the way back
//
// A plan comes from the caller and may hold anything: its indices are compared with the bounds
// before they are followed, and what is out of bounds is skipped.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastops::merge {

// How the tokens of a sample divide into sources and destinations. Without `tokens`, every k-th
// token (k - 1, 2k - 1, ...) is a destination and all others are sources. With it, a row of
// `tokens` lists the sources, then the destinations, then tokens that are neither.
struct Partition {
  int64_t num_tokens = 0, num_src = 0, num_dst = 0;
  int64_t k = 2;
  const int32_t* tokens = nullptr;
  int64_t tokens_stride = 0;                        // between samples; 0: shared
  bool class_token = false, distill_token = false;  // tokens 0 and 1 neither merge nor receive
  const uint8_t* padding = nullptr;                 // not zero: the token does not exist
  int64_t padding_stride[2] = {};                   // sample, token

#ifdef __CUDACC__
#define FASTOPS_MERGE_HD __host__ __device__
#else
#define FASTOPS_MERGE_HD
#endif
  // Position of source i, of destination j; anything where the caller's list holds anything.
  FASTOPS_MERGE_HD int64_t src(int64_t sample, int64_t i) const {
    if (tokens) return tokens[sample * tokens_stride + i];
    return k == 2 ? 2 * i : i / (k - 1) * k + i % (k - 1);
  }
  FASTOPS_MERGE_HD int64_t dst(int64_t sample, int64_t j) const {
    return tokens ? tokens[sample * tokens_stride + num_src + j] : j * k + k - 1;
  }
  FASTOPS_MERGE_HD bool present(int64_t sample, int64_t token) const {
    return token >= 0 && token < num_tokens &&
           !(padding && padding[sample * padding_stride[0] + token * padding_stride[1]]);
  }
  // Whether a token may merge or receive.
  FASTOPS_MERGE_HD bool takes_part(int64_t sample, int64_t token) const {
    return present(sample, token) && !(class_token && token == 0) && !(distill_token && token == 1);
  }
};

// scores[b, i] = max over j of cos(source i, destination j), matches[b, i] the least such j.
// Zero tokens have cosine 0 with everything. Where no score is a number: -inf and the first
// destination that may receive. Sources that may not merge, and all of them where no destination
// may receive: -inf and -1.
struct MatchParams {
  const void* metric = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0, heads = 1, channels = 0;
  int64_t stride[4] = {};  // sample, head, token, channel; heads are averaged
  Partition part;
  void* scores = nullptr;  // [batch, num_src], f64 for an f64 metric, else f32
  int32_t* matches = nullptr;
};

// The order of output rows.
//   position   that of the tokens that stay
//   reference  tokens in neither list, sources that stay (by falling score, or by position if there
//              is a class token), destinations; with a distillation token the first destination
//              comes second of the two
//   rest       the same, but every source leaves: to its match, or to nowhere if that is -1
enum class Order : int8_t { position, reference, rest };

// Per sample the r sources with the greatest scores (the least index first among equal ones) that
// exceed the threshold merge. Rows past lengths[b] are empty.
struct PlanParams {
  Partition part;
  int64_t batch = 0;
  const void* scores = nullptr;  // [batch, num_src]
  DType score_dtype = DType::f32;
  const int32_t* matches = nullptr;
  int64_t r = 0, num_out = 0;
  bool has_threshold = false;
  double threshold = 0;
  Order order = Order::position;
  int32_t* map = nullptr;      // [batch, num_tokens], -1: to no row
  int32_t* offsets = nullptr;  // [batch, num_out + 1]
  int32_t* perm = nullptr;     // [batch, num_tokens]: tokens by row, ascending in each; then -1
  int32_t* lengths = nullptr;  // [batch]
};

// Rebuilds offsets and perm for a map: map[t], or next[map[t]] where `next` is given.
struct ComposeParams {
  int64_t batch = 0, num_tokens = 0, num_mid = 0, num_out = 0;
  const int32_t* first = nullptr;  // [batch, num_tokens], into num_mid rows
  const int32_t* next = nullptr;   // optional [batch, num_mid], into num_out rows
  int32_t *map = nullptr, *offsets = nullptr, *perm = nullptr;
};

// Orders tokens by score: the `keep` greatest (class and distillation tokens always among them),
// the next `pool`, the rest; tokens receives [rest, pool, keep], the first by position and the
// last by position. Equal scores: the lower index is the greater. NaN is the least.
struct SelectParams {
  Partition part;  // num_tokens, class_token, distill_token, padding
  int64_t batch = 0;
  const void* scores = nullptr;  // [batch, num_tokens]
  DType score_dtype = DType::f32;
  int64_t keep = 0, pool = 0;
  int32_t* tokens = nullptr;  // [batch, num_tokens]
};

enum class Mode : int8_t { mean, sum, max, mlerp };

// A stack of rows: [batch, middle, rows, channels].
struct Rows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t middle = 1, channels = 0;
  int64_t stride[4] = {};
};

struct PlanView {
  int64_t batch = 0, num_tokens = 0, num_out = 0;
  const int32_t *map = nullptr, *offsets = nullptr, *perm = nullptr;
};

inline constexpr int kMaxTensors = 8;

// y[o] = sum of x over row o (sum), mean weighted by size (mean), maximum per channel (max), or the
// mean scaled to the greatest norm (mlerp; m * max|x_i| / |m|, and 0 where m is). A row of one
// token is that token, bit for bit; a row of none is 0.
struct MergeParams {
  PlanView plan;
  Mode mode = Mode::mean;
  int tensors = 0;
  Rows x[kMaxTensors], y[kMaxTensors];
  const void* size = nullptr;  // optional [batch, num_tokens], contiguous
  void* merged = nullptr;      // [batch, num_out]: the sum of sizes (of ones)
  void* log_merged = nullptr;  // [batch, num_out]
  DType size_dtype = DType::f32;
  bool fresh = false;  // the outputs were allocated for this call
};

// dx of MergeParams, and dsize where wanted. y is needed for max, mlerp and dsize, x too.
struct MergeBackwardParams {
  PlanView plan;
  Mode mode = Mode::mean;
  int tensors = 0;
  Rows dy[kMaxTensors], x[kMaxTensors], y[kMaxTensors], dx[kMaxTensors];
  const void* size = nullptr;
  const void* merged = nullptr;
  const void* dmerged = nullptr;  // optional [batch, num_out]: gradient of merged
  void* dsize = nullptr;          // optional [batch, num_tokens]
  DType size_dtype = DType::f32;
};

// out[i] = y[map[i]] (0 where that is no row) + residual[i].
struct UnmergeParams {
  PlanView plan;
  Rows y, residual, out;  // residual.data may be null
  bool fresh = false;     // as in MergeParams
};

namespace cpu {
void match(const MatchParams& p);
void plan(const PlanParams& p);
void compose(const ComposeParams& p);
void select(const SelectParams& p);
void merge(const MergeParams& p);
void merge_backward(const MergeBackwardParams& p);
void unmerge(const UnmergeParams& p);
}  // namespace cpu

}  // namespace fastops::merge
