// A block per row: its scores, kept in shared memory where they fit, and the sums over it.
//
// Thread t owns elements t, t + blockDim.x, ... throughout a kernel, so it reads only the shared
// scores that it stored itself, and no barrier is needed for them.
#pragma once

#include "softmax/cuda/walk.cuh"
#include "softmax/relatives.h"

namespace fastops::softmax::cuda {

inline constexpr int kRowThreadsMost = 256;

template <typename Acc>
struct RowView {
  AnyRow<Acc> any;
  Acc* kept;  // null: scores are made again from memory each time

  template <typename Params>
  __device__ __forceinline__ Acc at(const Params& p, int64_t j) const {
    return kept != nullptr ? kept[j] : any.score(p, p.x, j);
  }
};

// Sums of the block's `v`, the same bits in every thread. partials: 32 per value.
template <int kCount>
__device__ __forceinline__ void block_sums(double (&v)[kCount], double* partials) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k) v[k] = fastops::cuda::warp_sum(v[k], 32);
  if (warps == 1) return;
  __syncthreads();  // whoever still reads the last sums is done
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (lane == 0) partials[32 * k + warp] = v[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    v[k] = lane < warps ? partials[32 * k + lane] : 0.0;
    v[k] = fastops::cuda::warp_sum(v[k], 32);
  }
}

// The greatest of the block's `v` (NaN is ignored), and whether any `nan` is set.
template <typename Acc>
__device__ __forceinline__ Acc block_max(Acc v, bool& nan, double* partials) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  v = fastops::cuda::warp_max(v, 32);
  nan = __any_sync(fastops::cuda::kAllLanes, nan) != 0;
  if (warps == 1) return v;
  if (lane == 0) partials[warp] = v;
  if (lane == 0) partials[32 + warp] = nan ? 1.0 : 0.0;
  __syncthreads();
  v = lane < warps ? static_cast<Acc>(partials[lane]) : -infinity<Acc>();
  nan = lane < warps && partials[32 + lane] != 0.0;
  v = fastops::cuda::warp_max(v, 32);
  nan = __any_sync(fastops::cuda::kAllLanes, nan) != 0;
  return v;
}

// Brings a row in. Returns its maximum; `nan` where one of its scores is.
template <typename Acc, typename Params>
__device__ __forceinline__ Acc load_row(const Params& p, RowView<Acc>& row, bool& nan,
                                        double* partials) {
  Acc most = -infinity<Acc>();
  nan = false;
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < p.shape.n; j += blockDim.x) {
    const Acc s = row.any.score(p, p.x, j);
    if (row.kept != nullptr) row.kept[j] = s;
    most = fastops::cuda::maximum(most, s);
    nan = nan || s != s;
  }
  return block_max(most, nan, partials);
}

template <typename Acc, typename Params>
__device__ __forceinline__ void store(const Params& p, const Operand& out, int64_t row_at,
                                      int64_t j, Acc v) {
  store_any(out.dtype, out.data, row_at + element_offset(p.shape, out.reduce_stride, j), v);
}

}  // namespace fastops::softmax::cuda
