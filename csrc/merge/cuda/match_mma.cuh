// Match on tensor cores, mma.sync m16n8k16, sm_80 on.
//
//   16-bit metrics of one head, rows of 16-byte vectors: multiplied as they are, in fp32.
//   everything else but fp64 (kSplit): summed over heads in fp32, and every element as the sum of
//   two fp16 numbers, scaled by a power of two per token. Three products, and an error like that of
//   fp32; no matter which magnitude.
//
// Block: four warps, each 32 sources by 64 destinations of a tile, whose scores live in registers
// until they are compared: the greatest of a lane's 16 per row, and only where it beats the row's
// best a look which it was; then over the four lanes of a row, then over warps. Sources stay in
// shared memory; destinations are double buffered, 64 channels at a time.
//   shared     per 64 channels 16 KB of sources, and 16 KB of destinations (twice that if kSplit)
//   registers  64 scores (kSplit: and 64 sums of a chunk)
//   barriers   one per 64 channels of a tile, one more per tile where norms come from the copies
//   bytes      the metric once per 128 (or 64) sources, mostly from L2; kSplit with more than 64
//              channels twice, to know the scale
#pragma once

#include "merge/cuda/match_tile.cuh"

namespace fastops::merge::cuda {

// The scores of a source over all destinations, the long way.
template <typename T>
__device__ __forceinline__ Best<float> slow_best(const MatchParams& p, int64_t sample, int64_t i) {
  Best<float> best = {Lowest<float>::value(), kNoIndex};
  const int64_t a = p.part.src(sample, i);
  if (!p.part.takes_part(sample, a)) return best;
#pragma unroll 1
  for (int64_t j = 0; j < p.part.num_dst; ++j) {
    const int64_t b = p.part.dst(sample, j);
    if (p.part.takes_part(sample, b)) best.offer(slow_cosine<T, float>(p, sample, a, b), int(j));
  }
  return best;
}

// Offers a tile's scores, acc times the destinations' inverse norms, to the best of each row.
__device__ __forceinline__ void offer_scores(Best<float> (&best)[4], float (&acc)[2][8][4],
                                             const float* inverse, int first) {
  const int t = int(threadIdx.x) % 4;
  float scale[16];
#pragma unroll
  for (int c = 0; c < 16; ++c) scale[c] = inverse[c / 2 * 8 + 2 * t + c % 2];
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    float most = Lowest<float>::value();
#pragma unroll
    for (int c = 0; c < 16; ++c) {
      float& score = acc[row / 2][c / 2][row % 2 * 2 + c % 2];
      score *= scale[c];
      most = fmaxf(most, score);
    }
    if (most > best[row].score) {
      int at = 0;
#pragma unroll
      for (int c = 15; c >= 0; --c)  // the lowest last
        if (acc[row / 2][c / 2][row % 2 * 2 + c % 2] == most) at = c / 2 * 8 + c % 2;
      best[row] = {most, first + at + 2 * t};
    }
  }
}

template <typename T, bool kSplit>
__global__ __launch_bounds__(kMmaThreads, kSplit ? 2 : 3) void match_mma_kernel(
    const __grid_constant__ MatchParams p, MatchCut cut) {
  using E = std::conditional_t<kSplit, Half, T>;
  constexpr int kParts = kSplit ? 2 : 1;
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ float inverse_src[kMmaThreads], inverse_dst[2][kMmaThreads];
  __shared__ Norms norms_src, norms_dst;
  __shared__ float result_score[kMmaThreads];
  __shared__ int result_index[kMmaThreads];
  __shared__ int odd;  // whether a destination is

  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rows = cut.rows(), columns = cut.columns();
  const int row_warp = warp % cut.row_warps, column_warp = warp / cut.row_warps;
  const int64_t blocks = (p.part.num_src + rows - 1) / rows;
  const int64_t sample = blockIdx.x / blocks, first = blockIdx.x % blocks * rows;
  const Side<true> sources{p, sample, first};

  const int chunks = int(match_chunks(p.channels));
  const int src_part = rows * kChunkBytes, dst_part = columns * kChunkBytes;
  const unsigned src_tiles = ptx::smem_addr(shared);
  const unsigned dst_tiles = src_tiles + (cut.resident ? chunks : 2) * kParts * src_part;
  const auto src_tile = [&](int chunk, int buffer) {
    return src_tiles + (cut.resident ? chunk : buffer) * kParts * src_part;
  };
  const auto dst_tile = [&](int buffer) { return dst_tiles + buffer * kParts * dst_part; };
  const auto stage = [&](int tile, int chunk, int buffer) {
    const Side<false> destinations{p, sample, int64_t{tile} * columns};
    const bool reads_sources = tile == 0 || !cut.resident;
    if constexpr (kSplit) {
      if (reads_sources)
        split_rows<T>(src_tile(chunk, buffer), src_part, rows, sources, chunk, chunks, norms_src,
                      inverse_src, cut.vector);
      split_rows<T>(dst_tile(buffer), dst_part, columns, destinations, chunk, chunks, norms_dst,
                    inverse_dst[tile % 2], cut.vector);
    } else {
      if (reads_sources) copy_rows<T>(src_tile(chunk, buffer), rows, sources, chunk);
      copy_rows<T>(dst_tile(buffer), columns, destinations, chunk);
      ptx::cp_async_commit();
    }
  };

  Best<float> best[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) best[i] = {Lowest<float>::value(), kNoIndex};
  if (thread == 0) odd = 0;
  float acc[2][8][4];
  float squares_src[2] = {}, squares_dst[2] = {};

  const int tiles = int((p.part.num_dst + columns - 1) / columns);
  int tile = 0, chunk = 0, buffer = 0;
  if (tiles > 0) stage(0, 0, 0);
#pragma unroll 1
  while (tile < tiles) {
    if constexpr (!kSplit) {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();
    const bool last = chunk == chunks - 1;
    const int next = last ? tile + 1 : tile;
    if (next < tiles) stage(next, last ? 0 : chunk + 1, buffer ^ 1);
    if (kSplit || chunk == 0) {
#pragma unroll
      for (int i = 0; i < 64; ++i)
        if (!kSplit) acc[i / 32][i / 4 % 8][i % 4] = 0.f;
    }
    const unsigned src = src_tile(chunk, buffer) + row_warp * kWarpRows * kChunkBytes;
    const unsigned dst = dst_tile(buffer) + column_warp * kWarpColumns * kChunkBytes;
    const int64_t left = p.channels - int64_t{chunk} * kChunk;
    if constexpr (kSplit) {
      // Each chunk apart: tensor cores truncate their sums, an addition rounds.
      float part[2][8][4] = {};
      multiply<E, kParts>(part, src, src_part, dst, dst_part, left);
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        float& sum = acc[i / 32][i / 4 % 8][i % 4];
        sum = part[i / 32][i / 4 % 8][i % 4] + (chunk == 0 ? 0.f : sum);
      }
    } else {
      if (tile == 0) add_squares<T>(squares_src, src_tile(chunk, buffer), rows);
      add_squares<T>(squares_dst, dst_tile(buffer), columns);
      multiply<E, kParts>(acc, src, src_part, dst, dst_part, left);
    }
    buffer ^= 1;
    if (!last) {
      ++chunk;
      continue;
    }
    if constexpr (!kSplit) {
      const Side<false> destinations{p, sample, int64_t{tile} * columns};
      float* inverse = inverse_dst[tile % 2];
      if (tile == 0) finish_squares<T>(squares_src, inverse_src, rows, sources);
      finish_squares<T>(squares_dst, inverse, columns, destinations);
      squares_dst[0] = squares_dst[1] = 0;
      __syncthreads();
      if (std::is_same_v<T, BFloat16> && thread < columns && inverse[thread] == kOdd)
        atomicOr(&odd, 1);
    }
    offer_scores(best, acc, inverse_dst[tile % 2] + column_warp * kWarpColumns,
                 tile * columns + column_warp * kWarpColumns);
    ++tile;
    chunk = 0;
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float score = __shfl_xor_sync(kAllLanes, best[i].score, step);
      const int index = __shfl_xor_sync(kAllLanes, best[i].index, step);
      best[i].offer(score, index);
    }
    if (lane % 4 == 0) {
      const int row = column_warp * rows + row_warp * kWarpRows + i * 8 + lane / 4;
      result_score[row] = best[i].score;
      result_index[row] = best[i].index;
    }
  }
  __syncthreads();
  if (thread >= rows || first + thread >= p.part.num_src) return;
  Best<float> found = {result_score[thread], result_index[thread]};
  for (int other = thread + rows; other < kMmaThreads; other += rows)
    found.offer(result_score[other], result_index[other]);
  if (tiles > 0) {
    const float own = inverse_src[thread];
    if (!(own == own)) found.index = kNoIndex;
    found.score *= own;
    if constexpr (std::is_same_v<E, BFloat16>)
      if (own == kOdd || odd) found = slow_best<T>(p, sample, first + thread);
  }
  write_match(p, sample, first + thread, found);
}

}  // namespace fastops::merge::cuda
