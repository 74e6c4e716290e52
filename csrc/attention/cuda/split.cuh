// Rows whose lists several thread blocks of the Hopper forward share, and what makes one of them.
#pragma once

#include "attention/cuda/hopper_tile.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"

namespace fastops::attention::cuda {

// What a thread block has: a row, or a piece of one. `first` is past the end where there is
// nothing, and `slot` the number of the next section's first.
struct HopperItem : HopperPlace {
  int piece, least;  // which, of pieces of so many tiles at least
  int slot;          // where its result goes; -1: a whole row
};

__device__ __forceinline__ HopperItem item_of(const RowOrder& o, const RowSplits& splits,
                                              const HopperCut& cut, unsigned block) {
  if (splits.slots == 0) return {place_of(o, cut, block), 0, 0, -1};
  const unsigned listed = o.section_lists * o.rows, items = listed + splits.slots;
  const unsigned section = block / (items * o.section_heads);
  const unsigned within = block % (items * o.section_heads), head = within % o.section_heads;
  const unsigned lists = section / o.repeats;
  const int code = o.order[lists * items + within / o.section_heads];
  if (code < 0) return {{0, 0, INT32_MAX}, 0, 0, int((section + 1) * items * o.section_heads)};
  const unsigned row = unsigned(code) % listed;
  const int piece = int(unsigned(code) / listed), slot = splits.first_slot[lists * listed + row];
  const Turn turn = turn_at(o, section, row, head, 0);
  const HopperPlace place{int(turn.b), int(turn.h) * cut.pack, int(turn.tile) * cut.rows};
  if (slot < 0) return {place, 0, 0, -1};
  return {place, piece, splits.piece[lists],
          int((section * splits.slots + unsigned(slot + piece)) * o.section_heads + head)};
}

inline constexpr int kJoinThreads = 256;

// Out and lse of rows that were split, from their pieces, in their order: a block for each tile, a
// warp for a row at a time. Registers: about 40. Global: each piece's output once.
template <typename T>
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const __grid_constant__ ForwardParams p, HopperCut cut,
                const __grid_constant__ RowOrder o, const __grid_constant__ RowSplits splits) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const unsigned head = blockIdx.x % o.section_heads, at = blockIdx.x / o.section_heads;
  const unsigned section = at / (splits.slots / 2), lists = section / o.repeats;
  const int32_t* const split =
      splits.split + (lists * (splits.slots / 2) + at % (splits.slots / 2)) * 2;
  const int row = split[0], pieces = split[1];
  if (row < 0) return;
  const Turn turn = turn_at(o, section, unsigned(row), head, 0);
  const int first_slot = splits.first_slot[lists * o.section_lists * o.rows + unsigned(row)];
  const int tile_rows = cut.rows * cut.pack, channels = int(p.value_dim);
  // Of row r of piece i.
  const auto place = [&](int i, int r) {
    const unsigned slot =
        (section * splits.slots + unsigned(first_slot + i)) * o.section_heads + head;
    return int64_t{slot} * tile_rows + r;
  };
#pragma unroll 1
  for (int r = warp; r < tile_rows; r += kJoinThreads / 32) {
    const int64_t query = int64_t{turn.tile} * cut.rows + r % cut.rows;
    const int64_t h = int64_t{turn.h} * cut.pack + r / cut.rows;
    if (query >= p.seq_q) continue;
    const float sink = p.sinks ? p.sinks[h] * kLog2e : -INFINITY;
    float most = sink;
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) most = fmaxf(most, splits.lse[place(i, r)]);
    const float base = most == -INFINITY ? 0.f : most;
    float sum = ptx::ex2(sink - base);
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) sum += ptx::ex2(splits.lse[place(i, r)] - base);
    if (lane == 0)
      p.lse[(turn.b * p.heads + h) * p.seq_q + query] =
          sum == 0.f ? -INFINITY : (base + log2f(sum)) * kLn2;
    const float scale = sum == 0.f ? 0.f : 1.f / sum;
    T* const out = head_of<T>(p.out, turn.b, h) + query * p.out.stride[2];
#pragma unroll 1
    for (int c = 2 * lane; c < channels; c += 64) {
      float x = 0.f, y = 0.f;
#pragma unroll 1
      for (int i = 0; i < pieces; ++i) {
        const float worth = ptx::ex2(splits.lse[place(i, r)] - base);
        const uint2 pair = ptx::ld_global_64(splits.out + place(i, r) * channels + c);
        x = __fmaf_rn(worth, __uint_as_float(pair.x), x);
        y = __fmaf_rn(worth, __uint_as_float(pair.y), y);
      }
      *reinterpret_cast<unsigned*>(out + c) = fastops::cuda::pack2(T(), x * scale, y * scale);
    }
  }
}

}  // namespace fastops::attention::cuda
