// Reductions over the lanes of a warp. All of a warp's lanes call; `lanes` is a power of two and
// groups of that many neighbours each get their own result. The butterfly adds the same two
// numbers on both sides, so every lane of a group holds the same bits.
#pragma once

#include "cuda/runtime.h"

namespace fastops::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T maximum(T a, T b) {
  if constexpr (sizeof(T) == 8) return fmax(a, b);
  else return fmaxf(a, b);
}

template <typename T>
__device__ __forceinline__ T warp_max(T v, int lanes) {
#pragma unroll 1
  for (int step = lanes >> 1; step > 0; step >>= 1)
    v = maximum(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T v, int lanes) {
#pragma unroll 1
  for (int step = lanes >> 1; step > 0; step >>= 1) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// How a softmax statistic meets its kind is the operator's business: Op::warp_reduce(stat, lanes)
// combines lanes, and what follows carries the result across warps and blocks.

// The reduction over a block of `Op::Stat`s, one barrier a call. `partials` has room for two
// calls: a warp may still read the last call's while a faster one writes the next, but never two
// calls apart. `phase` alternates between calls.
template <typename Op>
__device__ __forceinline__ typename Op::Stat block_reduce(typename Op::Stat stat,
                                                          typename Op::Stat (*partials)[kWarp],
                                                          int phase) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  stat = Op::warp_reduce(stat, kWarp);
  if (warps == 1) return stat;
  if (lane == 0) partials[phase][warp] = stat;
  __syncthreads();
  stat = lane < warps ? partials[phase][lane] : Op::identity();
  return Op::warp_reduce(stat, kWarp);
}

}  // namespace fastops::cuda
