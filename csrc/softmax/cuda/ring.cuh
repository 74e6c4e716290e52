// Short rows that lie one after the other in memory, through rings of bulk copies (sm_90): what is
// in flight no longer depends on registers.
#pragma once

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "softmax/cuda/heuristics.h"
#include "softmax/cuda/rows.cuh"

namespace fastops::softmax::cuda {

// How a warp goes about its rows; one slot of its ring takes `group` of them.
struct RingCut {
  int lanes;   // per row, a power of two
  int group;   // rows a slot: a multiple of 32 / lanes, and of what makes it whole 16 bytes
  int stages;  // slots a warp
};

// A row as it lies in a slot: element 0 of input i is at `at + i * input_bytes`.
struct InSlot {
  unsigned at, input_bytes;
  int vectors;    // 0 beyond the last row
  bool complete;  // false: the end of this row did not fill 16 bytes, so it was not copied
};

// Vector v of a row. The slot also holds the neighbours of a row that does not start or end on 16
// bytes: their elements are replaced.
template <typename Op>
__device__ __forceinline__ typename Op::Input take(const typename Op::Row& r, const InSlot& slot,
                                                   int v) {
  const int first = v * Op::kV - r.shift;
  const bool whole = first >= 0 && first + Op::kV <= r.count;
  typename Op::Input input;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    const uint64_t absent = r.absent(i);
    input.raw[i] = fastops::cuda::raw_of(absent, absent);
    if (v >= slot.vectors) continue;
    if (whole || slot.complete) {
      const unsigned address =
          slot.at + i * slot.input_bytes + first * int(sizeof(typename Op::In));
      input.raw[i] = ptx::ld_shared_128(address);
      if (!whole)
        input.raw[i] =
            fastops::cuda::keep_elements<typename Op::In>(input.raw[i], first, r.count, absent);
    } else {
      input.raw[i] = fastops::cuda::load_partial(r.input(i), first, r.count, absent);
    }
  }
  return input;
}

// A row by the lanes that share it. Where it does not fit their registers (kLoop) it is read from
// the slot twice.
template <typename Op, int kVecs, bool kLoop>
__device__ __forceinline__ void ring_row(const typename Op::Params& p, const typename Op::Row& row,
                                         const InSlot& slot, int64_t at, int lane, int lanes) {
  typename Op::Held held[kVecs];
  if constexpr (kLoop) {
    typename Op::Stat stat = Op::identity();
#pragma unroll 1
    for (int v0 = lane; v0 < slot.vectors; v0 += lanes * kVecs) {
#pragma unroll
      for (int k = 0; k < kVecs; ++k)
        held[k] = Op::hold(row, v0 + k * lanes, take<Op>(row, slot, v0 + k * lanes));
      stat = Op::merge(stat, Op::reduce(held));
    }
    const typename Op::Stat total = Op::warp_reduce(stat, lanes);
    if (slot.vectors == 0) return;
    const typename Op::Final final = Op::finish(p, at, total);
#pragma unroll 2
    for (int v = lane; v < slot.vectors; v += lanes)
      Op::write(row, v, Op::hold(row, v, take<Op>(row, slot, v)), final);
    if (lane == 0) Op::write_row(p, at, total);
  } else {
#pragma unroll
    for (int k = 0; k < kVecs; ++k)
      held[k] = Op::hold(row, lane + k * lanes, take<Op>(row, slot, lane + k * lanes));
    const typename Op::Stat own = Op::reduce(held);
    const typename Op::Stat total = Op::warp_reduce(own, lanes);
    if (slot.vectors == 0) return;
    const typename Op::Final final = Op::localize(Op::finish(p, at, total), own, total);
#pragma unroll
    for (int k = 0; k < kVecs; ++k)
      if (lane + k * lanes < slot.vectors) Op::write_reduced(row, lane + k * lanes, held[k], final);
    if (lane == 0) Op::write_row(p, at, total);
  }
}

// Persistent warps, each with a ring of its own: a slot is a group of neighbouring rows, brought by
// one bulk copy an input, and takes a later group as soon as its rows are stored. Nobody waits for
// another warp.
//
//   holds     stages * group rows a warp, in shared memory; a row also in registers, unless kLoop
//   bytes     each operand moved once
//   barriers  none of the block; an mbarrier a slot; 2 log2(lanes) shuffles a row
//   in flight all slots but the one at hand
template <typename Op, int kVecs, bool kLoop>
__global__ __launch_bounds__(kRingThreads, ring_blocks_by_registers(kVecs, kLoop)) void ring_kernel(
    const __grid_constant__ typename Op::Params p, RingCut cut) {
  using In = typename Op::In;
  constexpr int kWarp = fastops::cuda::kWarp;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ uint64_t barriers[kRingThreads / kWarp][kRingStages];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  const int n = static_cast<int>(p.shape.n);
  const int row_bytes = n * static_cast<int>(sizeof(In));
  const unsigned input_bytes = cut.group * row_bytes;
  const unsigned slot_bytes = input_bytes * Op::kInputs;
  const unsigned ring = ptx::smem_addr(shared) + warp * cut.stages * slot_bytes;
  const unsigned landed = ptx::smem_addr(&barriers[warp][0]);
  const int64_t groups = (p.shape.rows + cut.group - 1) / cut.group;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;

  const typename Op::Row origin = Op::locate(p, 0, 0, n);
  const auto rows_of = [&](int64_t group) {
    return static_cast<int>(min(static_cast<int64_t>(cut.group),  //
                                p.shape.rows - group * cut.group));
  };
  const auto copied_of = [&](int64_t group) { return rows_of(group) * row_bytes & ~15; };
  const auto fill = [&](int64_t group, int stage) {
    const int64_t first = group * cut.group * n;
    const unsigned slot = ring + stage * slot_bytes, bytes = copied_of(group);
    ptx::mbarrier_arrive_expect(landed + 8 * stage, bytes * Op::kInputs);
#pragma unroll
    for (int i = 0; i < Op::kInputs; ++i)
      ptx::bulk_load(slot + i * input_bytes, origin.input(i) + first, bytes, landed + 8 * stage);
  };

  const int64_t start = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (lane == 0) {
#pragma unroll 1
    for (int s = 0; s < cut.stages; ++s) {
      ptx::mbarrier_init(landed + 8 * s, 1);
    }
    ptx::fence_mbarrier_init();
#pragma unroll 1
    for (int s = 0; s < cut.stages; ++s)
      if (start + s * step < groups) fill(start + s * step, s);
  }
  __syncwarp();

  int stage = 0;
  unsigned parity = 0;
#pragma unroll 1
  for (int64_t group = start; group < groups; group += step) {
    ptx::mbarrier_wait(landed + 8 * stage, parity);
    const int rows = rows_of(group), copied = copied_of(group);
    const int rows_at_once = kWarp / cut.lanes;
#pragma unroll 1
    for (int r0 = 0; r0 < rows; r0 += rows_at_once) {
      const int r = r0 + lane / cut.lanes;
      const int64_t at = group * cut.group + min(r, rows - 1);
      const typename Op::Row row = Op::locate(p, at, 0, n);
      const InSlot slot{ring + stage * slot_bytes + r * row_bytes, input_bytes,
                        r < rows ? row.vectors() : 0, (r + 1) * row_bytes <= copied};
      ring_row<Op, kVecs, kLoop>(p, row, slot, at, lane & (cut.lanes - 1), cut.lanes);
    }
    __syncwarp();  // every lane has read the slot
    if (lane == 0 && group + cut.stages * step < groups) fill(group + cut.stages * step, stage);
    if (++stage == cut.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

}  // namespace fastops::softmax::cuda
