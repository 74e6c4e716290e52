// From a problem to the kernels of its element type.
#include "attention/cuda/kernels.h"
#include "attention/cuda/launch.h"
#include "attention/cuda/tiles.h"
#include "cuda/tile/reduce.cuh"

namespace fastops::attention::cuda {
inline constexpr int kSinkThreads = 256;

// d sink = - sum over all rows of exp(sink - lse) delta: a block for each head, in a fixed order.
__global__ void __launch_bounds__(kSinkThreads)
    sink_gradient_kernel(const __grid_constant__ BackwardParams p) {
  __shared__ double sums[kSinkThreads / 32];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t h = blockIdx.x, rows = p.batch * p.seq_q;
  const float sink = p.sinks[h];
  double sum = 0;  // of many, that cancel
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < rows; i += kSinkThreads) {
    const int64_t at = (i / p.seq_q * p.heads + h) * p.seq_q + i % p.seq_q;
    const float lse = p.lse[at];
    if (lse != -INFINITY) sum -= double(expf(sink - lse)) * p.delta[at];
  }
  sum = fastops::cuda::warp_sum(sum, 32);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (int i = 0; i < kSinkThreads / 32; ++i) all += sums[i];
  p.grad_sinks[h] = float(all);
}

size_t forward_workspace(const ForwardParams& p) {
  const auto [kernel, cut] = plan_forward(p);
  if (kernel == Kernel::hopper) return hopper_order_workspace(p, cut);
  return order_workspace(p.mask.by_query);
}

// Its parts run one after the other, so they share it.
size_t backward_workspace(const BackwardParams& p) {
  const size_t by_query = order_workspace(p.mask.by_query);
  const size_t by_key = order_workspace(p.mask.by_key);
  return by_query > by_key ? by_query : by_key;
}

void forward(const ForwardParams& p, void* stream) {
  if (p.dtype == DType::f16) return forward_f16(p, stream);
  if (p.dtype == DType::bf16) return forward_bf16(p, stream);
  forward_f32(p, stream);
}

void backward(const BackwardParams& p, void* stream) {
  if (p.dtype == DType::f16) backward_f16(p, stream);
  else if (p.dtype == DType::bf16) backward_bf16(p, stream);
  else backward_f32(p, stream);
  // After the delta that these wrote.
  if (p.grad_sinks && p.heads > 0)
    launch(&sink_gradient_kernel,
           {"attention sink gradient", dim3(unsigned(p.heads)), dim3(kSinkThreads), 0, 1, stream},
           p);
}

}  // namespace fastops::attention::cuda
