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

enum class SparseKernel : int8_t {
  stream,  // mma.sp, a few rows: the weight is streamed past registers, inputs split between warps
  tiles,   // mma.sp
  wgmma,   // wgmma.sp, sm_90a
};

// On sparse tensor cores: the outputs and rows of a block, and how the inputs are shared out.
struct SparsePlan {
  SparseKernel kernel;
  int outputs, rows;
  int cluster;     // of wgmma: blocks of the same rows that fetch x once
  int64_t splits;  // blocks that share a tile's inputs; above 1 a second kernel adds them up
};

inline constexpr int kBlockInputs = 64;

// More rows than these are bound by the tensor cores rather than by the weight's bytes.
inline constexpr int64_t kWgmmaRows = 80;

// `wgmma`: the device has it, and TMA can address x.
constexpr SparsePlan plan_sparse(int64_t out, int64_t in, int64_t rows, int sm_count, bool wgmma) {
  const auto parts = [](int64_t size, int64_t part) { return (size + part - 1) / part; };
  SparsePlan plan{};
  plan.kernel = rows <= 16                   ? SparseKernel::stream
                : wgmma && rows > kWgmmaRows ? SparseKernel::wgmma
                                             : SparseKernel::tiles;
  plan.outputs = plan.kernel == SparseKernel::stream ? 64 : 128;
  plan.rows = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 64 ? 64 : 128;
  plan.cluster = 1;
  int blocks_per_sm = 2;
  if (plan.kernel == SparseKernel::wgmma) {
    const int64_t across = parts(out, plan.outputs);
    blocks_per_sm = 1;
    // Twice the rows a block where that leaves half of the SMs busy.
    if (rows > 128 && 2 * across * parts(rows, 256) >= sm_count) plan.rows = 256;
    // Blocks that only fill up a cluster may be a sixth of those that work.
    for (int cluster = 2; cluster <= 4; cluster *= 2)
      if ((parts(across, cluster) * cluster - across) * 6 <= across) plan.cluster = cluster;
  }
  const int64_t tiles = parts(out, plan.outputs) * parts(rows, plan.rows);
  // Every SM busy, each block with enough inputs to be worth its epilogue.
  int64_t splits = tiles > 0 ? blocks_per_sm * sm_count / tiles : 1;
  const int64_t most = parts(in, kBlockInputs) / 8;
  if (splits > most) splits = most;
  plan.splits = splits < 1 ? 1 : splits > 16 ? 16 : splits;
  return plan;
}

}  // namespace fastops::nm::cuda
