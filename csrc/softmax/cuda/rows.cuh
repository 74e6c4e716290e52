// Rows short enough for registers: several lanes per row, or a block per row.
#pragma once

#include "softmax/cuda/forward.cuh"

namespace fastops::softmax::cuda {

// The blocks of a launch are laid out over x and y: a grid's x holds 2^31 - 1 at most.
__device__ __forceinline__ int64_t linear_block() {
  return blockIdx.x + static_cast<int64_t>(blockIdx.y) * gridDim.x;
}

// One vector of every input of a row if it is whole; its neutral bits otherwise.
template <typename Op>
__device__ __forceinline__ typename Op::Input load_whole(const typename Op::Row& r, int v) {
  const int first = v * Op::kV - r.shift;
  const bool whole = first >= 0 && first + Op::kV <= r.present;
  typename Op::Input input;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    input.raw[i] = fastops::cuda::raw_of(r.absent(i), r.absent(i));
    if (whole && r.input_aligned(i)) input.raw[i] = ptx::ld_global_128(r.input(i) + first);
  }
  return input;
}

// What load_whole left out: the partial vectors at a row's ends, and rows off alignment.
template <typename Op>
__device__ __forceinline__ void load_rest(const typename Op::Row& r, int v,
                                          typename Op::Input& input) {
  const int first = v * Op::kV - r.shift;
  if (first >= r.present || first + Op::kV <= 0) return;
  const bool whole = first >= 0 && first + Op::kV <= r.present;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i)
    if (!(whole && r.input_aligned(i)))
      input.raw[i] = fastops::cuda::load_partial(r.input(i), first, r.present, r.absent(i));
}

// Calls visit(v, held) on the vectors first, first + step, ... of a row, kUnroll loads in flight.
template <typename Op, int kUnroll, typename Visit>
__device__ __forceinline__ void for_each_vector(const typename Op::Row& row, int first, int step,
                                                const Visit& visit) {
  const int vectors = row.vectors();
#pragma unroll 1
  for (int v0 = first; v0 < vectors; v0 += step * kUnroll) {
    typename Op::Input input[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) input[k] = load_whole<Op>(row, v0 + k * step);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int v = v0 + k * step;
      load_rest<Op>(row, v, input[k]);
      if (v < vectors) visit(v, Op::hold(row, v, input[k]));
    }
  }
}

inline constexpr int kRowsThreads = 128;

// `lanes` lanes (a power of two, 32 at most) per row, kRows rows in flight per lane.
//
//   holds     lanes * kVecs vectors of 16 bytes a row, in registers
//   bytes     each operand moved once
//   barriers  none; 2 log2(lanes) shuffles per kRows rows
//   in flight kVecs * kRows vectors a thread before the first use
template <typename Op, int kVecs, int kRows>
__global__ __launch_bounds__(kRowsThreads, 1) void rows_kernel(const __grid_constant__
                                                               typename Op::Params p,
                                                               int lanes) {
  const int lane = threadIdx.x & (lanes - 1);
  const int group = threadIdx.x / lanes, groups = kRowsThreads / lanes;
  const int64_t first_row = linear_block() * groups * kRows + group;

  typename Op::Row row[kRows];
  typename Op::Input input[kRows][kVecs];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // Beyond the last row: no elements, so that nothing is read that another block may write.
    const int64_t at = first_row + r * groups;
    const int count = at < p.shape.rows ? static_cast<int>(p.shape.n) : 0;
    row[r] = Op::locate(p, min(at, p.shape.rows - 1), 0, count);
#pragma unroll
    for (int k = 0; k < kVecs; ++k) input[r][k] = load_whole<Op>(row[r], lane + k * lanes);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int k = 0; k < kVecs; ++k) load_rest<Op>(row[r], lane + k * lanes, input[r][k]);

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = first_row + r * groups;
    typename Op::Held held[kVecs];
#pragma unroll
    for (int k = 0; k < kVecs; ++k) held[k] = Op::hold(row[r], lane + k * lanes, input[r][k]);
    const typename Op::Stat own = Op::reduce(held);
    const typename Op::Stat total = Op::warp_reduce(own, lanes);
    if (at >= p.shape.rows) continue;
    const typename Op::Final final = Op::localize(Op::finish(p, at, total), own, total);
#pragma unroll
    for (int k = 0; k < kVecs; ++k)
      if (lane + k * lanes < row[r].vectors())
        Op::write_reduced(row[r], lane + k * lanes, held[k], final);
    if (lane == 0) Op::write_row(p, at, total);
  }
}

inline constexpr int kBlockRowThreads = 512;
inline constexpr int kBlockRowVecs = 4;

// A block per row.
//
//   holds     blockDim.x * 4 vectors of 16 bytes a row, in registers
//   bytes     each operand moved once
//   barriers  one
//   shared    one statistic per warp
template <typename Op>
__global__ __launch_bounds__(kBlockRowThreads, 1) void block_row_kernel(const __grid_constant__
                                                                        typename Op::Params p) {
  __shared__ typename Op::Stat partials[1][fastops::cuda::kWarp];
  const int64_t at = linear_block();
  if (at >= p.shape.rows) return;
  const int threads = blockDim.x, thread = threadIdx.x;

  const typename Op::Row row = Op::locate(p, at, 0, static_cast<int>(p.shape.n));
  typename Op::Input input[kBlockRowVecs];
#pragma unroll
  for (int k = 0; k < kBlockRowVecs; ++k) input[k] = load_whole<Op>(row, thread + k * threads);
#pragma unroll
  for (int k = 0; k < kBlockRowVecs; ++k) load_rest<Op>(row, thread + k * threads, input[k]);

  typename Op::Held held[kBlockRowVecs];
#pragma unroll
  for (int k = 0; k < kBlockRowVecs; ++k) held[k] = Op::hold(row, thread + k * threads, input[k]);
  const typename Op::Stat own = Op::reduce(held);
  typename Op::Stat total = own;
  if constexpr (Op::kReduces) total = fastops::cuda::block_reduce<Op>(own, partials, 0);
  const typename Op::Final final = Op::localize(Op::finish(p, at, total), own, total);
#pragma unroll
  for (int k = 0; k < kBlockRowVecs; ++k)
    if (thread + k * threads < row.vectors())
      Op::write_reduced(row, thread + k * threads, held[k], final);
  if (thread == 0) Op::write_row(p, at, total);
}

}  // namespace fastops::softmax::cuda
