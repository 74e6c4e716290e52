// Both parts of the backward pass in scalar fp32 arithmetic.
//
// Block: 128 threads, 8 kR rows by 32 listed columns a tile. Shared: two tiles of rows, two of
// columns, two of weights: (16 kR + 64) ld + 528 kR floats, ld the channels and four (102 KB at 256
// channels, kR = 2). Registers: kR kD / 8 sums. Barriers: three a tile.
#pragma once

#include "attention/cuda/order.cuh"
#include "attention/cuda/plain_tile.cuh"
#include "attention/cuda/sides.cuh"

namespace fastops::attention::cuda {

template <int kD>
inline constexpr int kPlainGroupRows = kD == 64 ? 4 : 2;

template <typename T, int kD, bool kByKey>
__global__ void __launch_bounds__(kPlainThreads)
    backward_plain_kernel(const __grid_constant__ BackwardParams p,
                          const __grid_constant__ RowOrder order, int ld) {
  constexpr int kR = kPlainGroupRows<kD>, kRows = 8 * kR;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ Slots slots;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int group = int(threadIdx.x) / 16, at = int(threadIdx.x) % 16;

  const Turn turn = turn_of(order, blockIdx.x);
  const Side<T, kByKey> side(p, turn.b, turn.h);
  const int block_rows = int(kByKey ? p.mask.block_kv : p.mask.block_q);
  const int block_listed = int(kByKey ? p.mask.block_q : p.mask.block_kv);
  const int tile_rows = min(kRows, block_rows);
  const int first = int(turn.tile) * tile_rows;
  // The least block has 16 rows.
  const int end = kRows > 16 ? min(first + tile_rows, side.rows) : side.rows;
  if (first >= end) return;
  const int head_dim = int(p.head_dim), value_dim = int(p.value_dim);

  float* row_a = reinterpret_cast<float*>(shared);
  float* row_b = row_a + kRows * ld;
  float* column_a = row_b + kRows * ld;
  float* column_b = column_a + kPlainColumns * ld;
  float* ds = column_b + kPlainColumns * ld;
  float* probabilities = ds + kRows * (kPlainColumns + 1);

  float grad_a[kR][kD / 64][4], grad_b[kR][kByKey ? kD / 64 : 1][4];
#pragma unroll
  for (int i = 0; i < kR; ++i)
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      grad_a[i][n / 4][n % 4] = 0.f;
      if constexpr (kByKey) grad_b[i][n / 4][n % 4] = 0.f;
    }
  load_plain(row_a, ld, side.row_a, side.row_stride_a, kRows, first, end, head_dim);
  load_plain(row_b, ld, side.row_b, side.row_stride_b, kRows, first, end, value_dim);

  const int members = kByKey ? int(unsigned(p.heads) / unsigned(p.kv_heads)) : 1;
#pragma unroll 1
  for (int member = 0; member < members; ++member) {
    const Listed<T, kByKey> listed(p, side, member);
    const List list(kByKey ? p.mask.by_key : p.mask.by_query, p.mask, side.b, listed.q_head,
                    first / block_rows, block_listed, kPlainColumns, listed.length);
    const int shift = list.shift(), per_tile = kPlainColumns >> shift;
    const int steps = (list.slots() + per_tile - 1) / per_tile;
    float bias_sum[kR];
#pragma unroll
    for (int i = 0; i < kR; ++i) bias_sum[i] = 0.f;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      if (warp == 0) {
        NextSlots next;
        next.load(list, step, per_tile, lane);
        next.store(slots, per_tile, lane);
      }
      __syncthreads();
      load_plain(column_a, ld, listed.a, listed.stride_a, slots, shift, listed.length, head_dim);
      load_plain(column_b, ld, listed.b, listed.stride_b, slots, shift, listed.length, value_dim);
      __syncthreads();
      float s[kR][2], dp[kR][2];
      plain_products<kR>(s, row_a, column_a, ld, head_dim);
      plain_products<kR>(dp, row_b, column_b, ld, value_dim);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int c = at + 16 * j;
        const Slot slot = slots.slot[c >> shift];
        const int64_t column = slots.element(c, shift);
        const int offset = c & ((1 << shift) - 1);
#pragma unroll
        for (int i = 0; i < kR; ++i) {
          const int row = first + group * kR + i;
          float probability_ = 0.f, ds_ = 0.f;
          const int r = row & (block_rows - 1);
          if (row < end && keeps<kByKey>(p.mask, slot, offset, listed.length, r)) {
            const int64_t query = kByKey ? column : row, key = kByKey ? row : column;
            float score = s[i][j] * p.scale;
            if (listed.bias) score += listed.bias[key * p.key_bias_stride[2]];
            probability_ = probability(score, p.lse[listed.first_query + query]);
            ds_ = probability_ * (dp[i][j] - p.delta[listed.first_query + query]);
          }
          const int to = (group * kR + i) * (kPlainColumns + 1) + c;
          ds[to] = ds_;
          if constexpr (kByKey) probabilities[to] = probability_;
          bias_sum[i] += ds_;
        }
      }
      __syncthreads();
      plain_sums<kR, kD>(grad_a, ds, column_a, ld, head_dim);
      if constexpr (kByKey) plain_sums<kR, kD>(grad_b, probabilities, column_b, ld, value_dim);
    }
    if constexpr (kByKey) {
      if (p.grad_key_bias) {
#pragma unroll
        for (int i = 0; i < kR; ++i) {
          const float sum = group_sum(bias_sum[i]);
          const int row = first + group * kR + i;
          if (at == 0 && row < end)
            p.grad_key_bias[(side.b * p.heads + listed.q_head) * p.seq_kv + row] = sum;
        }
      }
    }
  }

  const Heads& to_a = kByKey ? p.grad_k : p.grad_q;
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    const int row = first + group * kR + i;
    if (row >= end) continue;
    if (to_a.data)
      store_plain<T, kD>(head_of<T>(to_a, side.b, side.h) + row * to_a.stride[2], grad_a[i],
                         p.scale, head_dim);
    if constexpr (kByKey)
      if (p.grad_v.data)
        store_plain<T, kD>(head_of<T>(p.grad_v, side.b, side.h) + row * p.grad_v.stride[2],
                           grad_b[i], 1.f, value_dim);
  }
}

}  // namespace fastops::attention::cuda
