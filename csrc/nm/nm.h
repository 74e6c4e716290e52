// The N:M family as its kernels see it: plain structs of raw pointers and int64 strides, and the
// launchers of each backend. No torch here; csrc/nm/torch.cpp fills these in.
//
// A weight of [out, in] is N:M sparse when each group of M consecutive `in` elements of a row has
// at most N that are not zero. The one stored form of it, on every device (docs/nm.md):
//
//   values   [out, kept]   kept = in / M * N; the kept elements of a row, group by group
//   indices  [out, bytes]  uint8; the place (0 to M-1) of each kept element in its group, strictly
//                          rising within a group, index_bits(M) bits each, the first in the low
//                          bits of the first byte; a row ends with a whole byte
//
// Kernels read forms derived from it ("packings"): a structure (bytes that depend on the indices
// only) and the values in another order, given by `source`, a list of positions in `values`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace fastops::nm {

inline constexpr int kMaxGroup = 32;
inline constexpr int kMaxRowDims = 12;

struct Pattern {
  int n = 1, m = 1;
};

// 1, 2, 4 or 8, so that no index straddles a byte.
constexpr int index_bits(int m) { return m <= 2 ? 1 : m <= 4 ? 2 : m <= 16 ? 4 : 8; }

// A matrix of any strides (in elements). data == nullptr: absent.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0, col_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

// The rows of an activation: every dim but the last, merged where that is possible.
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int dims = 0;  // 0 with count == 1: a single row
  int64_t size[kMaxRowDims] = {};
  int64_t stride[kMaxRowDims] = {};
  int64_t count = 0;
  int64_t features = 0;
  int64_t feature_stride = 1;

  constexpr int64_t offset(int64_t row) const {
    if (dims <= 1) return row * stride[0];
    int64_t sum = 0;
    for (int d = dims - 1; d >= 0; --d) {
      sum += row % size[d] * stride[d];
      row /= size[d];
    }
    return sum;
  }
};

// The shape of a weight and its stored form. Row pitches are those of contiguous tensors.
struct Weight {
  Pattern pattern;
  int64_t out = 0, in = 0;

  constexpr int64_t groups() const { return in / pattern.m; }
  constexpr int64_t kept() const { return groups() * pattern.n; }
  constexpr int64_t index_row_bytes() const { return (kept() * index_bits(pattern.m) + 7) / 8; }
};

// Which elements of w to keep: of each group the n of the largest score; ties by larger |w|, then
// by lower index. NaN is the largest, +0 and -0 are equal. Without scores: |w|.
struct SelectParams {
  Weight weight;
  Matrix w, scores;         // fp32, fp16 or bf16 each
  uint8_t* mask = nullptr;  // contiguous; or
  void* pruned = nullptr;   // contiguous, w's dtype, 0 where not kept
};

// Kept are the elements that are not zero, or those of the mask; a group with fewer than n gets
// zeros at its lowest free places.
struct CompressParams {
  Weight weight;
  Matrix w, mask;  // mask: optional, boolean
  void* values = nullptr;
  uint8_t* indices = nullptr;
  int64_t* bad = nullptr;  // row * groups + group of the first group of more than n, or kNoneBad
};
inline constexpr int64_t kNoneBad = INT64_MAX;

struct DecompressParams {
  Weight weight;
  DType dtype = DType::f32;
  const void* values = nullptr;
  const uint8_t* indices = nullptr;
  void* w = nullptr;
};

// The first group whose indices do not rise strictly within [0, m).
struct CheckParams {
  Weight weight;
  const uint8_t* indices = nullptr;
  int64_t* bad = nullptr;
};

// Which packing a product reads. The numbers are part of the ops' schemas.
enum class Kind : int8_t {
  stored = 0,             // the stored form itself: structure = indices, weights = values
  stream = 1,             // CPU: lanes are outputs; a few rows
  panels = 2,             // CPU: lanes are rows; many rows
  panels_transposed = 3,  // CPU: of the transposed weight, for dX
  stored_transposed = 4,  // CUDA: the stored form, read transposed
  sparse_tiles = 5,       // CUDA: fragments and metadata of mma.sp, where the pattern satisfies 2:4
  amx_tiles = 6,          // CPU: bit masks, to be expanded into tiles of the matrix extensions
  pairs = 7,              // CPU: lanes are outputs, two kept bf16 each; any number of rows
  pair_panels = 8,        // CPU: lanes are rows, two bf16 each; many rows
};

enum class Activation : int8_t { none, relu, gelu, silu };

struct PackParams {
  Weight weight;
  Kind kind = Kind::stored;
  const uint8_t* indices = nullptr;
  uint8_t* structure = nullptr;
  int32_t* source = nullptr;  // positions in values, -1 for a zero
};
struct PackSizes {
  int64_t structure = 0;  // bytes
  int64_t source = 0;     // elements
};

struct GatherParams {
  DType dtype = DType::f32;
  const void* values = nullptr;
  int64_t count = 0;  // of values; positions beyond it read as zero
  const int32_t* source = nullptr;
  void* weights = nullptr;
  int64_t size = 0;
};

// y[r, o] = activation(sum over i of x[r, i] * w[o, i] + bias[o]), or, for a transposed kind,
// y[r, i] = sum over o of x[r, o] * w[o, i]. Sums in fp32.
struct MatmulParams {
  Weight weight;
  Kind kind = Kind::stored;
  Activation activation = Activation::none;
  Rows x;
  const void* weights = nullptr;  // x's dtype
  const uint8_t* structure = nullptr;
  const void* bias = nullptr;  // x's dtype, optional, contiguous
  void* y = nullptr;           // contiguous, x's dtype
  void* workspace = nullptr;   // device scratch of matmul_workspace() bytes (CUDA)

  constexpr bool transposed() const {
    return kind == Kind::panels_transposed || kind == Kind::stored_transposed;
  }
  constexpr int64_t outputs() const { return transposed() ? weight.in : weight.out; }
};

// dw[o, q] = sum over rows of grad[r, o] * x[r, place of kept element q]
struct WeightGradParams {
  Weight weight;
  Rows grad, x;
  const uint8_t* indices = nullptr;
  void* dw = nullptr;  // contiguous [out, kept], x's dtype
};

#define FASTOPS_NM_LAUNCHERS(...)                                                                 \
  Kind choose_kind(const Weight& weight, DType dtype, int64_t rows, bool transposed __VA_ARGS__); \
  void select(const SelectParams& p __VA_ARGS__);                                                 \
  void compress(const CompressParams& p __VA_ARGS__);                                             \
  void decompress(const DecompressParams& p __VA_ARGS__);                                         \
  void check(const CheckParams& p __VA_ARGS__);                                                   \
  PackSizes pack_sizes(PackParams& p __VA_ARGS__);                                                \
  void pack(const PackParams& p __VA_ARGS__);                                                     \
  void gather(const GatherParams& p __VA_ARGS__);                                                 \
  void matmul(const MatmulParams& p __VA_ARGS__);                                                 \
  void weight_grad(const WeightGradParams& p __VA_ARGS__);

namespace cpu {
FASTOPS_NM_LAUNCHERS()
}  // namespace cpu

namespace cuda {
// `stream` is a cudaStream_t; the current device is the tensors' device.
size_t matmul_workspace(const MatmulParams& p);
FASTOPS_NM_LAUNCHERS(, void* stream)
}  // namespace cuda
#undef FASTOPS_NM_LAUNCHERS

}  // namespace fastops::nm
