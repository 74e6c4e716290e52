// Both parts of the backward pass on tensor cores: mma.sync m16n8k16, 16-bit elements, sm_80 on.
//
// Block: 4 warps (fewer where shared memory is short) of 16 rows, and 64 listed columns each at 64
// channels, 32 at 128 (16 by keys, for want of registers). Shared: two tiles of rows and two stages
// of two tiles of columns: (row_warps * 32 + list_warps * kColumns * 4) * 2 kD bytes, 48 KB for
// blocks of 64 rows. Registers: kD sums by keys and kD / 2 by queries, kColumns scores and their
// gradients. Barriers: one a tile. 7 products instead of the 5 of a pass that adds up dq in memory,
// and every sum has one order.
#pragma once

#include "attention/cuda/mma_tile.cuh"
#include "attention/cuda/order.cuh"
#include "attention/cuda/sides.cuh"

namespace fastops::attention::cuda {

template <int kD, bool kByKey>
inline constexpr int kBackwardColumns = kD == 64 ? 64
                                        : kByKey ? 16
                                                 : 32;

// Adds up the sums of warps that shared a list, in their order, in the first of them.
template <int kWords>
__device__ __forceinline__ void add_warps(float (&sums)[kWords / 4][4], float* shared,
                                          int row_warps, int list_warps) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  __syncthreads();  // every warp is done with what was there
  if (warp >= row_warps) {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      shared[((warp - row_warps) * kWords + i) * 32 + lane] = sums[i / 4][i % 4];
  }
  __syncthreads();
  if (warp >= row_warps) return;
#pragma unroll 1
  for (int other = warp; other < row_warps * (list_warps - 1); other += row_warps)
#pragma unroll
    for (int i = 0; i < kWords; ++i) sums[i / 4][i % 4] += shared[(other * kWords + i) * 32 + lane];
}

// Rows g and g + 8 of a warp's sums, times `factor`.
template <typename T, int kD>
__device__ __forceinline__ void store_sums(T* to, int64_t stride, const float (&sums)[kD / 8][4],
                                           float factor, int64_t row, int64_t end, int channels) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + half * 8 + lane / 4;
    if (r >= end) continue;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
      if (n * 8 < channels)
        *reinterpret_cast<unsigned*>(to + r * stride + n * 8 + lane % 4 * 2) =
            pack2(T(), sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor);
  }
}

template <typename T, int kD, bool kByKey>
__global__ void __launch_bounds__(kMmaThreads, 2)
    backward_mma_kernel(const __grid_constant__ BackwardParams p, Cut cut,
                        const __grid_constant__ RowOrder order) {
  constexpr int kColumns = kBackwardColumns<kD, kByKey>, kN = kColumns / 8;
  constexpr int kRowBytes = Tile<kD>::kRowBytes;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ Slots slots[3];
  __shared__ Range range;
  __shared__ float bias_sums[4][16];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp % cut.row_warps, list_warp = warp / cut.row_warps;

  const Turn turn = turn_of(order, blockIdx.x);
  const Side<T, kByKey> side(p, turn.b, turn.h);
  const int block_rows = int(kByKey ? p.mask.block_kv : p.mask.block_q);
  const int block_listed = int(kByKey ? p.mask.block_q : p.mask.block_kv);
  const int tile_rows = cut.row_warps * 16, columns = cut.list_warps * kColumns;
  const int first = int(turn.tile) * tile_rows, end = side.rows;
  if (first >= end) return;
  const int warp_row = first + row_warp * 16;
  const int head_dim = int(p.head_dim), value_dim = int(p.value_dim);

  const unsigned row_a = ptx::smem_addr(shared), row_b = row_a + tile_rows * kRowBytes;
  const unsigned stages = row_b + tile_rows * kRowBytes;
  const unsigned column_bytes = columns * kRowBytes;
  if (head_dim < kD || value_dim < kD)
    clear_shared(row_a, 2 * tile_rows * kRowBytes + 4 * int(column_bytes));
  load_rows<kD>(row_a, side.row_a, side.row_stride_a, tile_rows, first, end, head_dim);
  load_rows<kD>(row_b, side.row_b, side.row_stride_b, tile_rows, first, end, value_dim);

  float grad_a[1][kD / 8][4], grad_b[1][kByKey ? kD / 8 : 1][4];
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) {
    grad_a[0][i / 4][i % 4] = 0.f;
    if constexpr (kByKey) grad_b[0][i / 4][i % 4] = 0.f;
  }

  const int members = kByKey ? int(unsigned(p.heads) / unsigned(p.kv_heads)) : 1;
#pragma unroll 1
  for (int member = 0; member < members; ++member) {
    const Listed<T, kByKey> listed(p, side, member);
    const List list(kByKey ? p.mask.by_key : p.mask.by_query, p.mask, side.b, listed.q_head,
                    first / block_rows, block_listed, kColumns, listed.length);
    const int shift = list.shift(), per_tile = columns >> shift;
    const int steps = (list.slots() + per_tile - 1) / per_tile;
    const auto load = [&](int step) {
      const unsigned to = stages + step % 2 * 2 * column_bytes;
      load_slots<kD>(to, listed.a, listed.stride_a, columns, slots[step % 3], shift, listed.length,
                     head_dim);
      load_slots<kD>(to + column_bytes, listed.b, listed.stride_b, columns, slots[step % 3], shift,
                     listed.length, value_dim);
    };
    // Of the queries that are rows; those that are columns are looked up one by one.
    float row_lse[2] = {INFINITY, INFINITY}, row_delta[2] = {0.f, 0.f}, bias_sum[2] = {0.f, 0.f};
    if constexpr (!kByKey) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_row + half * 8 + g;
        if (r >= end || p.lse[listed.first_query + r] == -INFINITY) continue;
        row_lse[half] = p.lse[listed.first_query + r] * kLog2e;
        row_delta[half] = p.delta[listed.first_query + r];
      }
    }
    __syncthreads();  // the slots and tiles of the head before are free
    if (warp == 0) {
      if (lane == 0) range = list.range();
      for (int i = 0; i < 2; ++i) {
        NextSlots next;
        next.load(list, i, per_tile, lane);
        next.store(slots[i], per_tile, lane);
      }
    }
    __syncthreads();
    if (steps > 0) load(0);
    ptx::cp_async_commit();

#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // this tile is here, the other stage is free
      const Slots& here = slots[step % 3];
      if (step + 1 < steps) load(step + 1);
      ptx::cp_async_commit();
      NextSlots next;
      if (warp == 0) {
        const List again(kByKey ? p.mask.by_key : p.mask.by_query, p.mask, range, block_listed,
                         kColumns, listed.length);
        next.load(again, step + 2, per_tile, lane);
      }

      const unsigned column_a =
          stages + step % 2 * 2 * column_bytes + list_warp * kColumns * kRowBytes;
      const unsigned column_b = column_a + column_bytes;
      float weights[1][kN][4], grads[1][kN][4];
      multiply_rows<T, kD>(weights, row_a + row_warp * 16 * kRowBytes, column_a);
      multiply_rows<T, kD>(grads, row_b + row_warp * 16 * kRowBytes, column_b);
#pragma unroll
      for (int i = 0; i < kColumns / 4; ++i) {
        const int c = list_warp * kColumns + i / 2 * 8 + 2 * t + i % 2;
        const Slot slot = here.slot[c >> shift];
        const int64_t column = here.element(c, shift);
        const bool real = slot.start >= 0 && column < listed.length;
        float lse = INFINITY, delta = 0.f, bias = 0.f;
        if constexpr (kByKey) {
          if (real && p.lse[listed.first_query + column] != -INFINITY) {
            lse = p.lse[listed.first_query + column] * kLog2e;
            delta = p.delta[listed.first_query + column];
          }
        } else {
          if (listed.bias && real) bias = listed.bias[column * p.key_bias_stride[2]] * kLog2e;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = warp_row + half * 8 + g;
          if constexpr (kByKey) {
            if (listed.bias && r < end) bias = listed.bias[r * p.key_bias_stride[2]] * kLog2e;
          } else {
            lse = row_lse[half];
            delta = row_delta[half];
          }
          float& s = weights[0][i / 2][2 * half + i % 2];
          float& d = grads[0][i / 2][2 * half + i % 2];
          const bool keep = !here.masked || keeps<kByKey>(p.mask, slot, c & ((1 << shift) - 1),
                                                          listed.length, r & (block_rows - 1));
          s = keep ? ptx::ex2(__fmaf_rn(s, p.scale * kLog2e, bias - lse)) : 0.f;
          d = keep ? s * (d - delta) : 0.f;
          bias_sum[half] += d;
        }
      }
      multiply_columns<T, kD>(grad_a, grads, column_a);
      if constexpr (kByKey) multiply_columns<T, kD>(grad_b, weights, column_b);
      if (warp == 0) next.store(slots[(step + 2) % 3], per_tile, lane);
    }
    if constexpr (kByKey) {
      if (p.grad_key_bias) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float sum = quad_sum(bias_sum[half]);
          if (t == 0) bias_sums[warp][half * 8 + g] = sum;
        }
        __syncthreads();
        const int r = warp_row + lane;
        if (list_warp == 0 && lane < 16 && r < end) {
          float sum = 0.f;
          for (int w = row_warp; w < int(blockDim.x) / 32; w += cut.row_warps)
            sum += bias_sums[w][lane];
          p.grad_key_bias[(side.b * p.heads + listed.q_head) * p.seq_kv + r] = sum;
        }
      }
    }
  }
  ptx::cp_async_wait<0>();

  if (cut.list_warps > 1) {
    float* words = reinterpret_cast<float*>(shared);
    add_warps<kD / 2>(grad_a[0], words, cut.row_warps, cut.list_warps);
    if constexpr (kByKey) add_warps<kD / 2>(grad_b[0], words, cut.row_warps, cut.list_warps);
  }
  if (list_warp > 0) return;
  // Asked for again rather than kept in registers.
  const Turn again = turn_of(order, unsigned(ptx::opaque(int(blockIdx.x))));
  const Side<T, kByKey> to(p, again.b, again.h);
  const int row = int(again.tile) * tile_rows + row_warp * 16;
  const Heads& to_a = kByKey ? p.grad_k : p.grad_q;
  if (to_a.data)
    store_sums<T, kD>(head_of<T>(to_a, to.b, to.h), to_a.stride[2], grad_a[0], p.scale, row,
                      to.rows, head_dim);
  if constexpr (kByKey)
    if (p.grad_v.data)
      store_sums<T, kD>(head_of<T>(p.grad_v, to.b, to.h), p.grad_v.stride[2], grad_b[0], 1.f, row,
                        to.rows, value_dim);
}

}  // namespace fastops::attention::cuda
