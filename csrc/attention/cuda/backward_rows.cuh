// What the backward pass takes from each row of queries before it meets keys.
#pragma once

#include "attention/cuda/blocks.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vector.cuh"

namespace fastops::attention::cuda {

inline constexpr int kDeltaThreads = 128;

// delta = rowsum(grad_out * out) - grad_lse, a warp for each row.
template <typename T>
__global__ void __launch_bounds__(kDeltaThreads)
    delta_kernel(const __grid_constant__ BackwardParams p) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t i = int64_t{blockIdx.x} * (kDeltaThreads / 32) + threadIdx.x / 32;
  if (i >= p.batch * p.heads * p.seq_q) return;
  const int64_t row = i % p.seq_q, head = i / p.seq_q, b = head / p.heads, h = head % p.heads;
  const T* grad = head_of<const T>(p.grad_out, b, h) + row * p.grad_out.stride[2];
  const T* out = head_of<const T>(p.out, b, h) + row * p.out.stride[2];
  float sum = 0.f;
#pragma unroll 1
  for (int c = lane; c < p.value_dim; c += 32)
    sum = __fmaf_rn(fastops::cuda::to_float(grad[c]), fastops::cuda::to_float(out[c]), sum);
  sum = fastops::cuda::warp_sum(sum, 32);
  if (lane == 0) p.delta[i] = sum - (p.grad_lse ? p.grad_lse[i] : 0.f);
}

}  // namespace fastops::attention::cuda
