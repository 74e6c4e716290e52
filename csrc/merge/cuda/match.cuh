// Match on CUDA cores, for fp64: any strides, heads averaged.
//
// A block keeps 64 sources and runs over all destinations, 64 at a time; the scores of a tile live
// in registers only long enough to be compared.
#pragma once

#include "merge/cuda/score.cuh"

namespace fastops::merge::cuda {

inline constexpr int kMatchTile = 64;
inline constexpr int kMatchDepth = 16;  // channels staged at a time
inline constexpr int kMatchThreads = 256;

// Tile 64 x 64, 4 x 4 scores a thread.
//   shared    2 x 2 x 16 x 68 values (35 KB)     registers  about 170
//   barriers  one per 16 channels, two per tile
//   bytes     the metric once per 64 sources, mostly from L2
template <typename T, typename Acc>
__global__ __launch_bounds__(kMatchThreads,
                             1) void match_kernel(const __grid_constant__ MatchParams p) {
  constexpr int kPitch = kMatchTile + 4, kQuarter = kMatchDepth / 4;
  __shared__ Acc staged[2][2][kMatchDepth][kPitch];  // buffer, side (0: sources), channel, row
  __shared__ Acc inverse[2][kMatchTile];             // 1 / norm; 0: the slow way
  __shared__ int64_t token[2][kMatchTile];           // -1: takes no part

  const int64_t tiles = (p.part.num_src + kMatchTile - 1) / kMatchTile;
  const int64_t sample = blockIdx.x / tiles, first = blockIdx.x % tiles * kMatchTile;
  const int thread = threadIdx.x, row = thread / 4, quarter = thread % 4;
  const int across = thread % 16, down = thread / 16;

  if (thread < kMatchTile) {
    const int64_t i = first + thread;
    const int64_t t = i < p.part.num_src ? p.part.src(sample, i) : -1;
    token[0][thread] = p.part.takes_part(sample, t) ? t : -1;
  }
  Best<Acc> best[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) best[i] = {Lowest<Acc>::value(), kNoIndex};

  const int chunks = int((p.channels + kMatchDepth - 1) / kMatchDepth);
  for (int64_t tile = 0; tile < p.part.num_dst; tile += kMatchTile) {
    __syncthreads();
    if (thread < kMatchTile) {
      const int64_t j = tile + thread;
      const int64_t t = j < p.part.num_dst ? p.part.dst(sample, j) : -1;
      token[1][thread] = p.part.takes_part(sample, t) ? t : -1;
    }
    __syncthreads();

    Acc next[2][kQuarter], squares[2] = {}, sum[4][4] = {};
    const auto load = [&](int chunk) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int64_t t = token[side][row];
#pragma unroll
        for (int k = 0; k < kQuarter; ++k) {
          const int64_t c = int64_t(chunk) * kMatchDepth + quarter * kQuarter + k;
          next[side][k] =
              t >= 0 && c < p.channels ? Acc(metric_at<T, Acc>(p, sample, t, c)) : Acc(0);
          squares[side] += next[side][k] * next[side][k];
        }
      }
    };
    const auto store = [&](int buffer) {
#pragma unroll
      for (int side = 0; side < 2; ++side)
#pragma unroll
        for (int k = 0; k < kQuarter; ++k)
          staged[buffer][side][quarter * kQuarter + k][row] = next[side][k];
    };
    if (chunks > 0) {
      load(0);
      store(0);
    }
    __syncthreads();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) load(chunk + 1);
      const auto& now = staged[chunk % 2];
#pragma unroll
      for (int k = 0; k < kMatchDepth; ++k) {
        Acc a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = now[0][k][down * 4 + i];
#pragma unroll
        for (int j = 0; j < 4; ++j) b[j] = now[1][k][across * 4 + j];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
      }
      if (chunk + 1 < chunks) store((chunk + 1) % 2);
      __syncthreads();
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      Acc s = squares[side];
      s += __shfl_xor_sync(kAllLanes, s, 1);
      s += __shfl_xor_sync(kAllLanes, s, 2);
      if (quarter == 0) inverse[side][row] = in_range(s) ? Acc(1) / sqrt(s) : Acc(0);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t b = token[1][across * 4 + j];
      if (b < 0) continue;
      const Acc scale = inverse[1][across * 4 + j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t a = token[0][down * 4 + i];
        if (a < 0) continue;
        const Acc own = inverse[0][down * 4 + i];
        Acc score = sum[i][j] * scale * own;
        if (scale == 0 || own == 0) score = slow_cosine<T, Acc>(p, sample, a, b);
        // Ascending, so strictly greater keeps the lowest index. NaN is never greater.
        if (score > best[i].score) best[i] = {score, int(tile + across * 4 + j)};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = 1; step < 16; step *= 2) {
      const Acc score = __shfl_xor_sync(kAllLanes, best[i].score, step);
      const int index = __shfl_xor_sync(kAllLanes, best[i].index, step);
      best[i].offer(score, index);
    }
    const int64_t source = first + down * 4 + i;
    if (across == 0 && source < p.part.num_src) write_match(p, sample, source, best[i]);
  }
}

}  // namespace fastops::merge::cuda
