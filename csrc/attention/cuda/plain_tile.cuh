// Tiles of fp32 rows in shared memory and products of them in scalar arithmetic: for fp32, and for
// any alignment, stride and number of channels.
//
// A block of 128 threads has 8 kR rows by 32 listed columns. Threads in groups of 16 have kR rows:
// thread i of the group has columns i and i + 16, and 4 channels in 64 of a row's result, 4 i on.
#pragma once

#include "attention/cuda/blocks.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vector.cuh"

namespace fastops::attention::cuda {

using fastops::cuda::kAllLanes;
using fastops::cuda::to_float;

inline constexpr int kPlainThreads = 128, kPlainColumns = 32;

__device__ __forceinline__ void from_float(float v, float& to) { to = v; }
__device__ __forceinline__ void from_float(float v, __half& to) { to = __float2half_rn(v); }
__device__ __forceinline__ void from_float(float v, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(v);
}

// Floats of a row in shared memory: neighbouring rows start four banks apart.
inline int64_t plain_row(int64_t head_dim, int64_t value_dim) {
  const int64_t most = head_dim > value_dim ? head_dim : value_dim;
  return ceil_div(most, 32) * 32 + 4;
}

// Rows [first, end) of a head, and zeros for the rest of `rows` by `padded` channels.
template <typename T>
__device__ __forceinline__ void load_plain(float* tile, int ld, const T* from, int64_t stride,
                                           int rows, int64_t first, int64_t end, int channels) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows * ld; i += kPlainThreads) {
    const int r = i / ld, c = i % ld;
    tile[i] = c < channels && first + r < end ? to_float(from[(first + r) * stride + c]) : 0.f;
  }
}

// The same for the rows that slots name.
template <typename T>
__device__ __forceinline__ void load_plain(float* tile, int ld, const T* from, int64_t stride,
                                           const Slots& slots, int shift, int64_t length,
                                           int channels) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kPlainColumns * ld; i += kPlainThreads) {
    const int r = i / ld, c = i % ld, start = slots.slot[r >> shift].start;
    const int64_t row = int64_t{start} + (r & ((1 << shift) - 1));
    tile[i] = c < channels && start >= 0 && row < length ? to_float(from[row * stride + c]) : 0.f;
  }
}

__device__ __forceinline__ float4 four(const float* p) {
  const uint4 v = ptx::ld_shared_128(ptx::smem_addr(p));
  return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}
__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return __fmaf_rn(a.w, b.w, __fmaf_rn(a.z, b.z, __fmaf_rn(a.y, b.y, __fmaf_rn(a.x, b.x, sum))));
}

// products[i][j] = row i . column j of this thread.
template <int kR>
__device__ __forceinline__ void plain_products(float (&products)[kR][2], const float* rows,
                                               const float* columns, int ld, int channels) {
  const int group = int(threadIdx.x) / 16, lane = int(threadIdx.x) % 16;
#pragma unroll
  for (int i = 0; i < kR; ++i) products[i][0] = products[i][1] = 0.f;
#pragma unroll 2
  for (int c = 0; c < channels; c += 4) {
    const float4 left = four(columns + lane * ld + c), right = four(columns + (lane + 16) * ld + c);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
      const float4 row = four(rows + (group * kR + i) * ld + c);
      products[i][0] = dot(row, left, products[i][0]);
      products[i][1] = dot(row, right, products[i][1]);
    }
  }
}

// sums[i] += row i of the weights . columns. A tile is summed by itself: over a long list errors
// grow with the number of tiles, not of columns.
template <int kR, int kD>
__device__ __forceinline__ void plain_sums(float (&sums)[kR][kD / 64][4], const float* weights,
                                           const float* columns, int ld, int channels) {
  const int group = int(threadIdx.x) / 16, lane = int(threadIdx.x) % 16;
#pragma unroll
  for (int n = 0; n < kD / 64; ++n) {
    if (n * 64 >= channels) break;
    const int c = n * 64 + lane * 4;
    float tile[kR][4];
#pragma unroll
    for (int i = 0; i < kR; ++i) tile[i][0] = tile[i][1] = tile[i][2] = tile[i][3] = 0.f;
#pragma unroll 1
    for (int j = 0; j < kPlainColumns; ++j) {
      // A row ends after a multiple of 32 channels: the last threads may have none.
      const float4 column = c < ld - 4 ? four(columns + j * ld + c) : float4{0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < kR; ++i) {
        const float weight = weights[(group * kR + i) * (kPlainColumns + 1) + j];
        tile[i][0] = __fmaf_rn(weight, column.x, tile[i][0]);
        tile[i][1] = __fmaf_rn(weight, column.y, tile[i][1]);
        tile[i][2] = __fmaf_rn(weight, column.z, tile[i][2]);
        tile[i][3] = __fmaf_rn(weight, column.w, tile[i][3]);
      }
    }
#pragma unroll
    for (int i = 0; i < kR; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[i][n][k] += tile[i][k];
  }
}

// Stores `factor` times the sums of one row.
template <typename T, int kD>
__device__ __forceinline__ void store_plain(T* row, const float (&sums)[kD / 64][4], float factor,
                                            int channels) {
#pragma unroll
  for (int n = 0; n < kD / 64; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = n * 64 + int(threadIdx.x) % 16 * 4 + i;
      if (c < channels) from_float(sums[n][i] * factor, row[c]);
    }
}

// Over the 16 threads of a group.
__device__ __forceinline__ float group_max(float v) {
#pragma unroll
  for (int step = 8; step > 0; step >>= 1) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
__device__ __forceinline__ float group_sum(float v) {
#pragma unroll
  for (int step = 8; step > 0; step >>= 1) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

}  // namespace fastops::attention::cuda
