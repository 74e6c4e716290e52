// Plans on CUDA: one block per sample. Everything is integers and comparisons, so the result does
// not depend on scheduling; the atomics only count.
#pragma once

#include "cuda/runtime.h"
#include "cuda/tile/scan.cuh"
#include "merge/merge.h"

namespace fastops::merge::cuda {

using fastops::cuda::block_scan;
using fastops::cuda::kAllLanes;
using fastops::cuda::kWarp;

inline constexpr int kPlanThreads = 256;
inline constexpr int kPlanWarps = kPlanThreads / kWarp;

// A float's bits, ordered as unsigned integers; NaN as -inf.
__device__ __forceinline__ uint64_t ordered_bits(double v) {
  if (v != v) v = __longlong_as_double(int64_t(0xfff0000000000000ull));
  const uint64_t u = uint64_t(__double_as_longlong(v == 0 ? 0.0 : v));
  return u >> 63 ? ~u : u | 1ull << 63;
}

__device__ __forceinline__ double score_at(const void* scores, DType dtype, int64_t i) {
  return dtype == DType::f64 ? static_cast<const double*>(scores)[i]
                             : double(static_cast<const float*>(scores)[i]);
}

// body(i, rank): each i in [0, count) for which keep(i), with its place among them, from `base` on.
// Gives the end. All threads call.
template <typename Keep, typename Body>
__device__ __forceinline__ int number(int64_t count, int base, int* partials, const Keep& keep,
                                      const Body& body) {
#pragma unroll 1
  for (int64_t begin = 0; begin < count; begin += kPlanThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool kept = i < count && keep(i);
    int total;
    const int rank = block_scan<kPlanWarps>(kept, partials, total);
    if (kept) body(i, base + rank);
    base += total;
  }
  return base;
}

// The `wanted` greatest keys among those with eligible(i), from the top bits down: every key above
// `threshold` and the first `ties` of those equal to it.
struct Selection {
  uint64_t threshold;
  int ties;
};

template <typename Key, typename Eligible>
__device__ __forceinline__ Selection radix_select(int64_t count, int wanted, int* histogram,
                                                  const Key& key, const Eligible& eligible) {
  uint64_t prefix = 0;
#pragma unroll 1
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int bin = threadIdx.x; bin < 256; bin += kPlanThreads) histogram[bin] = 0;
    __syncthreads();
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < count; i += kPlanThreads) {
      if (!eligible(i)) continue;
      const uint64_t k = key(i);
      const bool same = shift == 56 || (k >> (shift + 8)) == (prefix >> (shift + 8));
      if (same) atomicAdd(&histogram[int(k >> shift & 255)], 1);
    }
    __syncthreads();
    // Every thread walks the bins: 256 reads that all threads share.
    int bin = 255, left = wanted;
#pragma unroll 1
    for (; bin > 0; --bin) {
      const int here = histogram[bin];
      if (here >= left) break;
      left -= here;
    }
    __syncthreads();
    wanted = left;
    prefix |= uint64_t(bin) << shift;
  }
  return {prefix, wanted};
}

// offsets and perm from the map of one sample, tokens ascending in each row. `cursor` is the
// sample's offsets; one warp places the tokens, 32 at a time.
__device__ __forceinline__ void fill_rows(const int32_t* map, int64_t num_tokens, int64_t num_out,
                                          int32_t* offsets, int32_t* perm, int* partials) {
  for (int64_t o = threadIdx.x; o <= num_out; o += kPlanThreads) offsets[o] = 0;
  for (int64_t i = threadIdx.x; i < num_tokens; i += kPlanThreads) perm[i] = -1;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < num_tokens; i += kPlanThreads)
    if (map[i] >= 0) atomicAdd(&offsets[map[i]], 1);
  __syncthreads();
  int base = 0;
#pragma unroll 1
  for (int64_t begin = 0; begin <= num_out; begin += kPlanThreads) {
    const int64_t o = begin + threadIdx.x;
    int total;
    const int count = o < num_out ? offsets[o] : 0;
    const int before = block_scan<kPlanWarps>(count, partials, total);
    if (o <= num_out) offsets[o] = base + before;
    base += total;
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  const int lane = threadIdx.x;
#pragma unroll 1
  for (int64_t begin = 0; begin < num_tokens; begin += kWarp) {
    const int64_t i = begin + lane;
    const int row = i < num_tokens ? map[i] : -1;
    const unsigned peers = __match_any_sync(kAllLanes, row);
    const int rank = __popc(peers & ((1u << lane) - 1));
    if (row >= 0) perm[offsets[row] + rank] = int32_t(i);
    __syncwarp();
    if (row >= 0 && rank == 0) offsets[row] += __popc(peers);
    __syncwarp();
  }
  // Each start has moved to its row's end: the next row's start. Back by one, last to first.
#pragma unroll 1
  for (int64_t end = num_out; end > 0; end -= kWarp) {
    const int64_t o = end - lane;
    const int value = o > 0 ? offsets[o - 1] : 0;
    __syncwarp();
    if (o > 0) offsets[o] = value;
  }
  if (lane == 0) offsets[0] = 0;
}

inline constexpr int32_t kMerges = -2;  // in the map, while rows are numbered

//   shared    1.1 KB        registers  about 48
//   bytes     scores 8 times (from L1 and L2), the plan once
__global__ __launch_bounds__(kPlanThreads,
                             1) void plan_kernel(const __grid_constant__ PlanParams p) {
  __shared__ int histogram[256];
  __shared__ int partials[kPlanWarps];
  const Partition& part = p.part;
  const int64_t sample = blockIdx.x, n = part.num_tokens;
  const int thread = threadIdx.x;
  int32_t* map = p.map + sample * n;
  const int32_t* matches = p.matches + sample * part.num_src;

  const auto score = [&](int64_t i) {
    return score_at(p.scores, p.score_dtype, sample * part.num_src + i);
  };
  const auto key = [&](int64_t i) { return ordered_bits(score(i)); };
  const auto known = [&](int64_t t) { return t >= 0 && t < n; };
  const auto eligible = [&](int64_t i) {
    const int64_t j = matches[i];
    return part.takes_part(sample, part.src(sample, i)) && j >= 0 && j < part.num_dst &&
           part.present(sample, part.dst(sample, j)) &&
           (!p.has_threshold || score(i) > p.threshold);
  };
  for (int64_t t = thread; t < n; t += kPlanThreads) map[t] = -1;

  // Which sources merge.
  int available;
  {
    int own = 0;
    for (int64_t i = thread; i < part.num_src; i += kPlanThreads) own += eligible(i);
    block_scan<kPlanWarps>(own, partials, available);
  }
  const int64_t limit = p.r < 0 ? 0 : p.r;
  const int wanted = int(limit < available ? limit : available);
  Selection chosen = {0, 0};
  if (p.order != Order::rest && wanted > 0 && wanted < available)
    chosen = radix_select(part.num_src, wanted, histogram, key, eligible);
  const bool all = p.order == Order::rest || wanted == available;
  const auto mark = [&](int64_t i) {
    const int64_t t = part.src(sample, i);
    if (part.present(sample, t)) map[t] = kMerges;
  };
  if (all) {
    for (int64_t i = thread; i < part.num_src; i += kPlanThreads)
      if (p.order == Order::rest || eligible(i)) mark(i);
  } else if (wanted > 0) {
    for (int64_t i = thread; i < part.num_src; i += kPlanThreads)
      if (eligible(i) && key(i) > chosen.threshold) mark(i);
    number(
        part.num_src, 0, partials,
        [&](int64_t i) { return eligible(i) && key(i) == chosen.threshold; },
        [&](int64_t i, int rank) {
          if (rank < chosen.ties) mark(i);
        });
  }
  __syncthreads();
  const auto merges = [&](int64_t i) {
    const int64_t t = part.src(sample, i);
    return known(t) && map[t] == kMerges;
  };

  // Rows of the tokens that stay. A row past the last is given to nobody.
  int rows = 0;
  const auto give = [&](int64_t t, int row) {
    if (row < p.num_out) map[t] = row;
  };
  if (p.order == Order::position) {
    rows = number(
        n, 0, partials, [&](int64_t t) { return map[t] != kMerges && part.present(sample, t); },
        give);
  } else {
    const int64_t listed = part.num_src + part.num_dst;
    const auto stays = [&](int64_t t) { return part.present(sample, t) && map[t] == -1; };
    if (part.tokens) {
      const int32_t* rest = part.tokens + sample * part.tokens_stride + listed;
      rows = number(
          n - listed, rows, partials, [&](int64_t i) { return stays(rest[i]); },
          [&](int64_t i, int row) { give(rest[i], row); });
    }
    const auto src = [&](int64_t i) { return part.src(sample, i); };
    const auto dst = [&](int64_t j) { return part.dst(sample, j); };
    const auto src_stays = [&](int64_t i) { return stays(src(i)); };
    const auto dst_stays = [&](int64_t j) { return stays(dst(j)); };
    int sources, destinations;
    {
      int own[2] = {0, 0};
      if (p.order == Order::reference)
        for (int64_t i = thread; i < part.num_src; i += kPlanThreads) own[0] += src_stays(i);
      for (int64_t j = thread; j < part.num_dst; j += kPlanThreads) own[1] += dst_stays(j);
      block_scan<kPlanWarps>(own[0], partials, sources);
      block_scan<kPlanWarps>(own[1], partials, destinations);
    }
    // With a distillation token the first destination is the second of them.
    const bool second =
        p.order == Order::reference && part.distill_token && sources > 0 && destinations > 0;
    const int base = rows;
    const auto src_row = [&](int rank) { return base + rank + (second && rank > 0); };
    if (p.order == Order::reference && part.class_token) {
      number(part.num_src, 0, partials, src_stays,
             [&](int64_t i, int rank) { give(src(i), src_row(rank)); });
    } else if (p.order == Order::reference) {
      // By falling score: its rank is how many come before it. Quadratic, and only in this order.
      // The ranks wait in perm until every thread has read the map.
      int32_t* ranks = p.perm + sample * n;
      for (int64_t i = thread; i < part.num_src; i += kPlanThreads) {
        int rank = -1;
        if (src_stays(i)) {
          rank = 0;
          const uint64_t own = key(i);
#pragma unroll 1
          for (int64_t o = 0; o < part.num_src; ++o) {
            if (!src_stays(o)) continue;
            const uint64_t other = key(o);
            rank += other > own || (other == own && o < i);
          }
        }
        ranks[i] = rank;
      }
      __syncthreads();
      for (int64_t i = thread; i < part.num_src; i += kPlanThreads)
        if (ranks[i] >= 0) give(src(i), src_row(ranks[i]));
    }
    number(part.num_dst, 0, partials, dst_stays, [&](int64_t j, int rank) {
      give(dst(j), second ? rank == 0 ? base + 1 : base + sources + rank : base + sources + rank);
    });
    rows = base + sources + destinations;
  }
  __syncthreads();
  // Sources follow their destinations.
  for (int64_t i = thread; i < part.num_src; i += kPlanThreads) {
    if (!merges(i)) continue;
    const int64_t j = matches[i];
    const int64_t to = j >= 0 && j < part.num_dst ? part.dst(sample, j) : -1;
    const int row = known(to) ? map[to] : -1;
    map[part.src(sample, i)] = row < 0 ? -1 : row;
  }
  if (thread == 0) p.lengths[sample] = int32_t(rows < p.num_out ? rows : p.num_out);
  fill_rows(map, n, p.num_out, p.offsets + sample * (p.num_out + 1), p.perm + sample * n, partials);
}

__global__ __launch_bounds__(kPlanThreads,
                             1) void compose_kernel(const __grid_constant__ ComposeParams p) {
  __shared__ int partials[kPlanWarps];
  const int64_t sample = blockIdx.x, n = p.num_tokens;
  int32_t* map = p.map + sample * n;
  for (int64_t i = threadIdx.x; i < n; i += kPlanThreads) {
    int32_t o = p.first[sample * n + i];
    if (p.next) o = o >= 0 && o < p.num_mid ? p.next[sample * p.num_mid + o] : -1;
    map[i] = o >= 0 && o < p.num_out ? o : -1;
  }
  fill_rows(map, n, p.num_out, p.offsets + sample * (p.num_out + 1), p.perm + sample * n, partials);
}

// Ranks by comparing every pair: quadratic, for the few thousand tokens that are pruned.
__global__ __launch_bounds__(kPlanThreads,
                             1) void select_kernel(const __grid_constant__ SelectParams p) {
  __shared__ int partials[kPlanWarps];
  const Partition& part = p.part;
  const int64_t sample = blockIdx.x, n = part.num_tokens;
  int32_t* out = p.tokens + sample * n;
  // Padding last, tokens that always stay first.
  const auto key = [&](int64_t t) -> uint64_t {
    if (!part.present(sample, t)) return 0;
    if (!part.takes_part(sample, t)) return ~0ull;
    return ordered_bits(score_at(p.scores, p.score_dtype, sample * n + t));
  };
  const auto rank = [&](int64_t t) {
    const uint64_t own = key(t);
    int64_t before = 0;
#pragma unroll 1
    for (int64_t o = 0; o < n; ++o) {
      const uint64_t other = key(o);
      before += other > own || (other == own && o < t);
    }
    return before;
  };
  const int64_t rest = n - p.keep - p.pool;
  int kept = 0, left = 0;
#pragma unroll 1
  for (int64_t begin = 0; begin < n; begin += kPlanThreads) {
    const int64_t t = begin + threadIdx.x;
    const int64_t r = t < n ? rank(t) : 0;
    const bool keeps = t < n && r < p.keep, leaves = t < n && r >= p.keep + p.pool;
    int keeping, leaving;
    const int keep_at = block_scan<kPlanWarps>(keeps, partials, keeping);
    const int leave_at = block_scan<kPlanWarps>(leaves, partials, leaving);
    if (keeps) out[n - p.keep + kept + keep_at] = int32_t(t);
    else if (leaves) out[left + leave_at] = int32_t(t);
    else if (t < n) out[rest + r - p.keep] = int32_t(t);
    kept += keeping;
    left += leaving;
  }
}

}  // namespace fastops::merge::cuda
