// Which kernel and which cut: pure functions of shape, dtype and device, testable on the host.
// No GPU was at hand: limits are starting points.
#pragma once

#include "nm/nm.h"

namespace fastops::nm::cuda {

// At most 2 of any 4 neighbours are kept, so that mma.sp can hold the weight: 1:4, 2:8, 1:16, ...
constexpr bool satisfies_two_of_four(const Pattern& p) { return p.n <= 2 && p.m % 4 == 0; }

constexpr Kind plan_kind(const Pattern& pattern, DType dtype, bool transposed) {
  if (transposed) return Kind::stored_transposed;
  const bool half = dtype == DType::f16 || dtype == DType::bf16;
  return half && satisfies_two_of_four(pattern) ? Kind::sparse_tiles : Kind::stored;
}

// Of mma.sp: the outputs and rows of a block, and how the inputs are shared out.
struct SparsePlan {
  bool few_rows;  // the weight is streamed past registers, its inputs split between warps
  int outputs, rows;
  int64_t splits;  // blocks that share a tile's inputs; above 1 a second kernel adds them up
};

inline constexpr int kBlockInputs = 64;

constexpr SparsePlan plan_sparse(int64_t out, int64_t in, int64_t rows, int sm_count) {
  const int64_t blocks_in = (in + kBlockInputs - 1) / kBlockInputs;
  SparsePlan plan{};
  plan.few_rows = rows <= 16;
  plan.outputs = plan.few_rows ? 64 : 128;
  plan.rows = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
  const int64_t tiles =
      ((out + plan.outputs - 1) / plan.outputs) * ((rows + plan.rows - 1) / plan.rows);
  // Two blocks an SM, each with enough inputs to be worth its epilogue.
  const int64_t least = plan.few_rows ? 8 : 8;
  int64_t splits = tiles > 0 ? 2 * sm_count / tiles : 1;
  if (splits > blocks_in / least) splits = blocks_in / least;
  plan.splits = splits < 1 ? 1 : splits > 16 ? 16 : splits;
  return plan;
}

}  // namespace fastops::nm::cuda
