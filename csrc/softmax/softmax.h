// The softmax family as its kernels see it: plain structs of raw pointers and int64 strides, and
// the launchers of each backend. No torch here; csrc/softmax/torch.cpp fills these in.
//
// Every problem is a set of rows, each reduced over n elements:
//
//   s[j]   = x[j] * scale * row_scale + bias[j]      score of element j, in the accumulation type
//   valid  = mask[j] && j < min(lengths, query + causal_offset + 1)
//   lse    = log(sum over valid j of exp(s[j]))
//   out[j] = exp(s[j] - lse) (softmax)  or  s[j] - lse (log_softmax);  0 or -inf where not valid
//
// Dimensions are already coalesced: size-1 dims dropped, dims that every operand walks alike
// merged, and ordered so that the last row dim is the one with the smallest stride of `out`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace fastops::softmax {

inline constexpr int kMaxRowDims = 12;
inline constexpr int kMaxReduceDims = 6;

enum class Kind : int8_t { softmax, log_softmax, logsumexp };

// How the row maximum and sum are found; every choice agrees within rounding.
//   online      one sweep keeps a running (max, sum), exp is kept where the row fits in scratch
//   two_pass    one sweep of (mantissa, exponent) pairs, no maximum (Two-Pass Softmax, section 4)
//   three_pass  max, then exp-sum, then scale
enum class Algorithm : int8_t { automatic, online, two_pass, three_pass };

enum class Causal : int8_t { none, upper_left, lower_right };

// A tensor walked over the rows and over the reduced dims. Strides are in elements and 0 where
// the tensor broadcasts. data == nullptr: absent.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride[kMaxRowDims] = {};
  int64_t reduce_stride[kMaxReduceDims] = {};

  explicit operator bool() const { return data != nullptr; }
};

struct Shape {
  int row_dims = 0;     // 0 with rows == 1: a single row
  int reduce_dims = 0;  // 0 with n == 1
  int64_t row_size[kMaxRowDims] = {};
  int64_t reduce_size[kMaxReduceDims] = {};
  int64_t rows = 1;  // product of row_size
  int64_t n = 1;     // product of reduce_size, >= 1
};

struct ForwardParams {
  Shape shape;
  Kind kind = Kind::softmax;
  Algorithm algorithm = Algorithm::automatic;
  bool zero_masked_rows = false;  // a row whose scores are all -inf (or masked) gives 0, not NaN
  Operand x;
  Operand out;        // absent for logsumexp; any floating dtype
  Operand lse;        // optional; fp64 when accumulator(x, out) is fp64, else fp32
  Operand mask;       // optional, boolean; true = takes part
  Operand bias;       // optional, any floating dtype
  Operand lengths;    // optional, per row, i32 or i64; clamped to [0, n]
  Operand row_scale;  // optional, per row, same dtype as lse
  double scale = 1.0;
  // Causal: element j of a row takes part iff j <= query + causal_offset, where query is the dot
  // product of the row's coordinates with query_stride.
  bool causal = false;
  int64_t query_stride[kMaxRowDims] = {};
  int64_t causal_offset = 0;
  void* workspace = nullptr;  // device scratch of forward_workspace() bytes (CUDA split rows)
};

// dx = scale * row_scale * ds, with
//   softmax      y = p:      ds = p * (dy - sum(p * dy) + dlse)
//   log_softmax  y = log p:  ds = dy - exp(y) * (sum(dy) - dlse)
//   logsumexp    y = x:      ds = dlse * exp(s - lse)
// and ds = 0 where an element does not take part (mask, lengths, causal).
struct BackwardParams {
  Shape shape;
  Kind kind = Kind::softmax;
  bool zero_masked_rows = false;  // log_softmax: rows whose y are all -inf have zero gradient
  Operand y;                      // saved output, or x for logsumexp
  Operand dy;                     // absent for logsumexp
  Operand dx;
  Operand dlse;                            // optional, per row; fp32 or fp64 (accumulation type)
  Operand lse;                             // logsumexp only, per row, accumulation type
  Operand mask, bias, lengths, row_scale;  // as in ForwardParams; bias for logsumexp only
  double scale = 1.0;
  bool causal = false;
  int64_t query_stride[kMaxRowDims] = {};
  int64_t causal_offset = 0;
  void* workspace = nullptr;
};

namespace cpu {
void forward(const ForwardParams& p);
void backward(const BackwardParams& p);
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the current device is the tensors' device. The workspace sizes are
// pure functions of the params and the device's SM count and compute capability.
size_t forward_workspace(const ForwardParams& p);
size_t backward_workspace(const BackwardParams& p);
void forward(const ForwardParams& p, void* stream);
void backward(const BackwardParams& p, void* stream);
}  // namespace cuda

}  // namespace fastops::softmax
