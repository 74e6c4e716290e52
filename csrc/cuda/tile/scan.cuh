// Sums over what the threads of a block have before them.
#pragma once

#include "cuda/tile/reduce.cuh"

namespace fastops::cuda {

// Exclusive sum of `value` over the threads of a block of kWarps warps, and the total. `partials`
// holds one int per warp; two barriers.
template <int kWarps>
__device__ __forceinline__ int block_scan(int value, int* partials, int& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) partials[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += partials[w];
    total += partials[w];
  }
  return before + sum - value;
}

}  // namespace fastops::cuda
