// The forward pass on tensor cores: mma.sync m16n8k16, 16-bit elements, sm_80 on.
//
// Block: 4 warps (fewer where shared memory is short). A warp has 32 rows of queries and 64 listed
// keys of every tile (32 keys from 128 channels on, 16 rows at 256). Shared: the queries' tile, and
// one tile of K and one of V, which are copied while the other is multiplied: (row_warps kRows + 2
// list_warps kColumns) * 2 kD bytes, 48 KB at 128 channels and blocks of 128. Registers: 2 kFrags
// kD sums, kFrags kColumns / 2 scores; probabilities stay in them. Barriers: three a tile. Global:
// each listed row of K and V once per block, 16 bytes a copy.
#pragma once

#include "attention/cuda/mma_tile.cuh"
#include "attention/cuda/order.cuh"

namespace fastops::attention::cuda {

// Running maxima and sums of a warp's rows. Rows g and g + 8 of each fragment: m[frag][half].
template <int kFrags>
struct Statistics {
  float max[kFrags][2], sum[kFrags][2];
};

// Joins the results of warps that shared a list, in their order, in the first of them. Through
// shared memory, in the words [register][lane] of each.
template <int kD>
inline constexpr int kJoinWords = Tile<kD>::kFrags * (kD / 2 + 4);

template <int kD>
__device__ __forceinline__ void join_warps(float (&out)[Tile<kD>::kFrags][kD / 8][4],
                                           Statistics<Tile<kD>::kFrags>& stat, float factor,
                                           float* shared, int row_warps, int list_warps) {
  constexpr int kFrags = Tile<kD>::kFrags, kWords = kJoinWords<kD>;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const auto words = [&](int of) { return shared + (of - row_warps) * kWords * 32 + lane; };
  __syncthreads();  // every warp is done with the tiles
  if (warp >= row_warps) {
    float* to = words(warp);
#pragma unroll
    for (int m = 0; m < kFrags; ++m) {
#pragma unroll
      for (int i = 0; i < kD / 2; ++i) to[(m * (kD / 2) + i) * 32] = out[m][i / 4][i % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[(kFrags * (kD / 2) + m * 4 + half) * 32] = stat.max[m][half];
        to[(kFrags * (kD / 2) + m * 4 + half + 2) * 32] = stat.sum[m][half];
      }
    }
  }
  __syncthreads();
  if (warp >= row_warps) return;
#pragma unroll 1
  for (int other = warp + row_warps; other < row_warps * list_warps; other += row_warps) {
    const float* from = words(other);
#pragma unroll
    for (int m = 0; m < kFrags; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float theirs = from[(kFrags * (kD / 2) + m * 4 + half) * 32];
        const float sum = from[(kFrags * (kD / 2) + m * 4 + half + 2) * 32];
        const float most = fmaxf(stat.max[m][half], theirs);
        const float shift = most == -INFINITY ? 0.f : most;
        const float mine_by = ptx::ex2((stat.max[m][half] - shift) * factor);
        const float theirs_by = ptx::ex2((theirs - shift) * factor);
        stat.max[m][half] = most;
        stat.sum[m][half] = stat.sum[m][half] * mine_by + sum * theirs_by;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i)
            out[m][n][i] =
                out[m][n][i] * mine_by + from[(m * (kD / 2) + n * 4 + i) * 32] * theirs_by;
      }
  }
}

// Scores in units of log2 where there is a bias or a scale that is not positive; -inf where they do
// not count. `row`: of the block of queries. Columns are those from `column` on of the tile.
template <int kD>
__device__ __forceinline__ void mask_scores(
    float (&scores)[Tile<kD>::kFrags][Tile<kD>::kColumns / 8][4], const ForwardParams& p,
    const Slots& slots, int shift, int column, int row, const float* bias, bool scaled) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < Tile<kD>::kColumns; n += 32) {
    if (scaled) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int c = column + n + i / 2 * 8 + 2 * t + i % 2;
        const int64_t key = slots.element(c, shift);
        const bool real = bias && slots.slot[c >> shift].start >= 0 && key < p.seq_kv;
        const float add = real ? bias[key * p.key_bias_stride[2]] * kLog2e : 0.f;
#pragma unroll
        for (int m = 0; m < Tile<kD>::kFrags; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& s = scores[m][n / 8 + i / 2][2 * half + i % 2];
            s = s * (p.scale * kLog2e) + add;
          }
      }
    }
#pragma unroll
    for (int m = 0; m < Tile<kD>::kFrags; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = (row + m * 16 + half * 8 + g) & (int(p.mask.block_q) - 1);
        const unsigned keep = row_bits(p.mask, slots, column + n, shift, p.seq_kv, r) >> (2 * t);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (!(keep >> (i / 2 * 8 + i % 2) & 1))
            scores[m][n / 8 + i / 2][2 * half + i % 2] = -INFINITY;
      }
  }
}

// Where a block's rows are. Asked for again at the end rather than kept in registers.
struct Place {
  unsigned b, h;
  int64_t first, end;
};
__device__ __forceinline__ Place place_of(const ForwardParams& p, Cut cut, const RowOrder& order,
                                          int warp_rows, unsigned block) {
  const Turn turn = turn_of(order, block);
  const int rows = min(cut.row_warps * warp_rows, int(p.mask.block_q));
  const int64_t first = int64_t{turn.tile} * rows;
  return {turn.b, turn.h, first, min(first + rows, p.seq_q)};
}

template <typename T, int kD>
__global__ void __launch_bounds__(kMmaThreads, kD == 256 ? 1 : 2)
    forward_mma_kernel(const __grid_constant__ ForwardParams p, Cut cut,
                       const __grid_constant__ RowOrder order) {
  constexpr int kFrags = Tile<kD>::kFrags, kRows = Tile<kD>::kRows, kColumns = Tile<kD>::kColumns;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ Slots slots[3];
  __shared__ Range range;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int row_warp = warp % cut.row_warps, list_warp = warp / cut.row_warps;

  const Place place = place_of(p, cut, order, Tile<kD>::kRows, blockIdx.x);
  if (place.first >= place.end) return;
  const int row = (int(place.first) & (int(p.mask.block_q) - 1)) + row_warp * kRows;
  const List list(p.mask.by_query, p.mask, place.b, place.h, place.first / p.mask.block_q,
                  int(p.mask.block_kv), kColumns, p.seq_kv);
  const int shift = list.shift(), per_tile = cut.list_warps * kColumns >> shift;
  const int steps = (list.slots() + per_tile - 1) / per_tile;

  const unsigned queries = ptx::smem_addr(shared);
  const unsigned keys = queries + cut.row_warps * kRows * Tile<kD>::kRowBytes;
  const int columns = cut.list_warps * kColumns;
  const unsigned values = keys + columns * Tile<kD>::kRowBytes;
  const int64_t kv_head = place.h / (p.heads / p.kv_heads);
  const T* k = head_of<const T>(p.k, place.b, kv_head);
  const T* v = head_of<const T>(p.v, place.b, kv_head);
  const float* bias = p.key_bias;
  if (bias) bias += place.b * p.key_bias_stride[0] + place.h * p.key_bias_stride[1];
  const bool scaled = bias || !(p.scale > 0);
  const float factor = scaled ? 1.f : p.scale * kLog2e;

  float out[kFrags][kD / 8][4];
  Statistics<kFrags> stat;
#pragma unroll
  for (int m = 0; m < kFrags; ++m) {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) out[m][i / 4][i % 4] = 0.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      stat.max[m][half] = -INFINITY;
      stat.sum[m][half] = 0.f;
    }
  }

  if (p.head_dim < kD || p.value_dim < kD)
    clear_shared(queries, (cut.row_warps * kRows + 2 * columns) * Tile<kD>::kRowBytes);
  if (warp == 0) {
    if (lane == 0) range = list.range();
    for (int i = 0; i < 2; ++i) {
      NextSlots next;
      next.load(list, i, per_tile, lane);
      next.store(slots[i], per_tile, lane);
    }
  }
  __syncthreads();
  if (steps > 0) {
    load_rows<kD>(queries, head_of<const T>(p.q, place.b, place.h), p.q.stride[2],
                  cut.row_warps * kRows, place.first, place.end, int(p.head_dim));
    load_slots<kD>(keys, k, p.k.stride[2], columns, slots[0], shift, p.seq_kv, int(p.head_dim));
  }
  ptx::cp_async_commit();

#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Slots& here = slots[step % 3];
    ptx::cp_async_wait<0>();
    __syncthreads();  // K is here, V is free
    load_slots<kD>(values, v, p.v.stride[2], columns, here, shift, p.seq_kv, int(p.value_dim));
    ptx::cp_async_commit();
    NextSlots next;
    if (warp == 0) {
      const List again(p.mask.by_query, p.mask, range, int(p.mask.block_kv), kColumns, p.seq_kv);
      next.load(again, step + 2, per_tile, lane);
    }

    float scores[kFrags][kColumns / 8][4];
    multiply_rows<T, kD>(scores, queries + row_warp * kRows * Tile<kD>::kRowBytes,
                         keys + list_warp * kColumns * Tile<kD>::kRowBytes);
    __syncthreads();  // K is free
    if (step + 1 < steps)
      load_slots<kD>(keys, k, p.k.stride[2], columns, slots[(step + 1) % 3], shift, p.seq_kv,
                     int(p.head_dim));
    ptx::cp_async_commit();
    if (here.masked || scaled)
      mask_scores<kD>(scores, p, here, shift, list_warp * kColumns, row, bias, scaled);

#pragma unroll
    for (int m = 0; m < kFrags; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = stat.max[m][half];
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i)
          most = fmaxf(most, scores[m][i / 2][2 * half + i % 2]);
        most = quad_max(most);
        const float base = most == -INFINITY ? 0.f : __fmul_rn(most, factor);
        const float by = ptx::ex2(__fmul_rn(stat.max[m][half], factor) - base);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
          float& s = scores[m][i / 2][2 * half + i % 2];
          s = ptx::ex2(__fmaf_rn(s, factor, -base));
          sum += s;
        }
        stat.max[m][half] = most;
        stat.sum[m][half] = stat.sum[m][half] * by + sum;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          out[m][n][2 * half] *= by;
          out[m][n][2 * half + 1] *= by;
        }
      }

    ptx::cp_async_wait<1>();
    if (warp == 0) next.store(slots[(step + 2) % 3], per_tile, lane);
    __syncthreads();  // V is here
    multiply_columns<T, kD>(out, scores, values + list_warp * kColumns * Tile<kD>::kRowBytes);
  }

  if (cut.list_warps > 1)
    join_warps<kD>(out, stat, factor, reinterpret_cast<float*>(shared), cut.row_warps,
                   cut.list_warps);
  if (list_warp > 0) return;
  const Place to = place_of(p, cut, order, kRows, unsigned(ptx::opaque(int(blockIdx.x))));
  const float sink = p.sinks ? p.sinks[to.h] * kLog2e : -INFINITY;
  T* out_head = head_of<T>(p.out, to.b, to.h);
#pragma unroll
  for (int m = 0; m < kFrags; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = quad_sum(stat.sum[m][half]);
      const int64_t r = to.first + row_warp * kRows + m * 16 + half * 8 + lane / 4;
      const float highest = __fmul_rn(stat.max[m][half], factor), most = fmaxf(highest, sink);
      const float base = most == -INFINITY ? 0.f : most;
      const float by = ptx::ex2(highest - base);
      sum = sum * by + ptx::ex2(sink - base);
      if (r >= to.end) continue;
      const float scale = sum == 0.f ? 0.f : by / sum;
      if (lane % 4 == 0)
        p.lse[(int64_t{to.b} * p.heads + to.h) * p.seq_q + r] =
            sum == 0.f ? -INFINITY : (base + log2f(sum)) * kLn2;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
        if (n * 8 < p.value_dim)
          *reinterpret_cast<unsigned*>(out_head + r * p.out.stride[2] + n * 8 + lane % 4 * 2) =
              pack2(T(), out[m][n][2 * half] * scale, out[m][n][2 * half + 1] * scale);
    }
}

}  // namespace fastops::attention::cuda
