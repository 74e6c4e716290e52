// What both passes on Hopper share: where a block's rows are, and what a warpgroup does with scores
// as its accumulators hold them. A thread has of them, for each 8 columns, two (2t, 2t + 1) of two
// rows of its warp's 16 (g, g + 8).
#pragma once

#include "attention/cuda/blocks.cuh"
#include "attention/cuda/order.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/tile/vector.cuh"

namespace fastops::attention::cuda {

// `pack` heads from h on, `rows` each from `first` on. Asked for again at the end rather than kept
// in registers.
struct HopperPlace {
  int b, h, first;
};
__device__ __forceinline__ HopperPlace place_of(const RowOrder& order, const HopperCut& cut,
                                                unsigned block) {
  const Turn turn = turn_of(order, block);
  return {int(turn.b), int(turn.h) * cut.pack, int(turn.tile) * cut.rows};
}

// Scores in units of log2 where there is a bias or a scale that is not positive.
template <int kColumns>
__device__ __forceinline__ void scale_scores(float (&scores)[kColumns / 2], const Problem& p,
                                             const Slots& slots, int shift, const float* bias) {
  const int t = int(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < kColumns; n += 8) {
    const int start = slots.slot[n >> shift].start, key = start + (n & ((1 << shift) - 1)) + 2 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool real = bias && start >= 0 && key + i < int(p.seq_kv);
      const float add = real ? bias[(key + i) * p.key_bias_stride[2]] * kLog2e : 0.f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& s = scores[n / 2 + 2 * half + i];
        s = s * (p.scale * kLog2e) + add;
      }
    }
  }
}

// `masked` in place of what does not count, keys as columns. A warp has 16 rows, from `row` of the
// block of queries on: each lane reads the bits of one of them, of a half of the columns.
template <int kColumns>
__device__ __forceinline__ void mask_keys(float (&scores)[kColumns / 2], const Problem& p,
                                          const Slots& slots, int shift, int row, float masked) {
  const int lane = int(threadIdx.x) % 32, t = lane % 4;
  unsigned words[kColumns / 64];
#pragma unroll
  for (int i = 0; i < kColumns / 64; ++i)
    words[i] = row_bits(p.mask, slots, i * 64 + lane / 16 * 32, ptx::opaque(shift), p.seq_kv,
                        row + lane % 16);
#pragma unroll
  for (int n = 0; n < kColumns; n += 32)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned keep =
          __shfl_sync(kAllLanes, words[n / 64], n / 32 % 2 * 16 + half * 8 + lane / 4) >> (2 * t);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (!(keep >> (i / 2 * 8 + i % 2) & 1))
          scores[n / 2 + i / 2 * 4 + 2 * half + i % 2] = masked;
    }
}

// The next a: what accumulators hold is, pair by pair, what it wants.
template <typename T, int kCount>
__device__ __forceinline__ void pack_pairs(unsigned (&packed)[kCount / 8][4],
                                           const float (&scores)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i)
    packed[i / 4][i % 4] = fastops::cuda::pack2(T(), scores[2 * i], scores[2 * i + 1]);
}

// Row g (half 0) or g + 8 of what accumulators hold, times `factor`.
template <typename T, int kD>
__device__ __forceinline__ void store_row(T* row, const float (&sums)[kD / 2], int half,
                                          float factor, int channels) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
    if (n * 8 < channels)
      *reinterpret_cast<unsigned*>(row + n * 8 + int(threadIdx.x) % 4 * 2) = fastops::cuda::pack2(
          T(), sums[n * 4 + 2 * half] * factor, sums[n * 4 + 2 * half + 1] * factor);
}

// The same in fp32.
template <int kD>
__device__ __forceinline__ void store_row(float* row, const float (&sums)[kD / 2], int half,
                                          float factor, int channels) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
    if (n * 8 < channels)
      ptx::st_global_64(row + n * 8 + int(threadIdx.x) % 4 * 2,
                        {__float_as_uint(sums[n * 4 + 2 * half] * factor),
                         __float_as_uint(sums[n * 4 + 2 * half + 1] * factor)});
}

}  // namespace fastops::attention::cuda
