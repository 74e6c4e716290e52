// The forward pass in scalar fp32 arithmetic.
//
// Block: 128 threads, 32 queries by 32 listed keys a tile. Shared: the queries, one tile that is K
// and then V, the probabilities: 64 ld + 1056 floats, ld the channels and four (71 KB at 256).
// Registers: kD / 4 sums. Barriers: four a tile.
#pragma once

#include "attention/cuda/order.cuh"
#include "attention/cuda/plain_tile.cuh"

namespace fastops::attention::cuda {

inline constexpr int kPlainRows = 32;

template <typename T, int kD>
__global__ void __launch_bounds__(kPlainThreads)
    forward_plain_kernel(const __grid_constant__ ForwardParams p,
                         const __grid_constant__ RowOrder order, int ld) {
  constexpr int kR = kPlainRows / 8;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ Slots slots[2];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int group = int(threadIdx.x) / 16, at = int(threadIdx.x) % 16;

  const Turn turn = turn_of(order, blockIdx.x);
  const int64_t b = turn.b, h = turn.h;
  const int block_q = int(p.mask.block_q), tile_rows = min(kPlainRows, block_q);
  const int64_t first = int64_t{turn.tile} * tile_rows, end = min(first + tile_rows, p.seq_q);
  if (first >= end) return;
  const List list(p.mask.by_query, p.mask, b, h, first / block_q, int(p.mask.block_kv),
                  kPlainColumns, p.seq_kv);
  const int shift = list.shift(), per_tile = kPlainColumns >> shift;
  const int steps = (list.slots() + per_tile - 1) / per_tile;

  float* queries = reinterpret_cast<float*>(shared);
  float* columns = queries + kPlainRows * ld;
  float* weights = columns + kPlainColumns * ld;
  const int64_t kv_head = h / (p.heads / p.kv_heads);
  const T* k = head_of<const T>(p.k, b, kv_head);
  const T* v = head_of<const T>(p.v, b, kv_head);
  const float* bias = p.key_bias;
  if (bias) bias += b * p.key_bias_stride[0] + h * p.key_bias_stride[1];
  const int head_dim = int(p.head_dim), value_dim = int(p.value_dim);

  float out[kR][kD / 64][4], highest[kR], total[kR];
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    highest[i] = -INFINITY;
    total[i] = 0.f;
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) out[i][n / 4][n % 4] = 0.f;
  }
  load_plain(queries, ld, head_of<const T>(p.q, b, h), p.q.stride[2], kPlainRows, first, end,
             head_dim);
  if (warp == 0) {
    NextSlots next;
    next.load(list, 0, per_tile, lane);
    next.store(slots[0], per_tile, lane);
  }
  __syncthreads();

#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Slots& here = slots[step % 2];
    load_plain(columns, ld, k, p.k.stride[2], here, shift, p.seq_kv, head_dim);
    __syncthreads();
    float s[kR][2];
    plain_products<kR>(s, queries, columns, ld, head_dim);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
      const int r = ((int(first) & (block_q - 1)) + group * kR + i) & (block_q - 1);
      const unsigned keep =
          here.masked ? row_bits(p.mask, here, 0, shift, p.seq_kv, r) : 0xffffffffu;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int c = at + 16 * j;
        if (keep >> c & 1) {
          s[i][j] *= p.scale;
          if (bias) s[i][j] += bias[here.element(c, shift) * p.key_bias_stride[2]];
        } else {
          s[i][j] = -INFINITY;
        }
      }
      const float most = group_max(fmaxf(highest[i], fmaxf(s[i][0], s[i][1])));
      const float base = most == -INFINITY ? 0.f : most;
      const float by = expf(highest[i] - base);
      highest[i] = most;
      total[i] *= by;
#pragma unroll
      for (int n = 0; n < kD / 16; ++n) out[i][n / 4][n % 4] *= by;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float weight = expf(s[i][j] - base);
        total[i] += weight;
        weights[(group * kR + i) * (kPlainColumns + 1) + at + 16 * j] = weight;
      }
    }
    __syncthreads();  // K is free
    load_plain(columns, ld, v, p.v.stride[2], here, shift, p.seq_kv, value_dim);
    if (warp == 0) {
      NextSlots next;
      next.load(list, step + 1, per_tile, lane);
      next.store(slots[(step + 1) % 2], per_tile, lane);
    }
    __syncthreads();
    plain_sums<kR, kD>(out, weights, columns, ld, value_dim);
    __syncthreads();  // V is free
  }

  const float sink = p.sinks ? p.sinks[h] : -INFINITY;
#pragma unroll
  for (int i = 0; i < kR; ++i) {
    float sum = group_sum(total[i]);
    const int64_t r = first + group * kR + i;
    const float most = fmaxf(highest[i], sink), base = most == -INFINITY ? 0.f : most;
    const float by = expf(highest[i] - base);
    sum = sum * by + expf(sink - base);
    if (r >= end) continue;
    if (at == 0) p.lse[(b * p.heads + h) * p.seq_q + r] = sum == 0.f ? -INFINITY : base + logf(sum);
    store_plain<T, kD>(head_of<T>(p.out, b, h) + r * p.out.stride[2], out[i],
                       sum == 0.f ? 0.f : by / sum, value_dim);
  }
}

}  // namespace fastops::attention::cuda
