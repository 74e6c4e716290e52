// Products of any N:M pattern straight from the stored form: the weight is expanded tile by tile in
// shared memory and multiplied densely, which costs the arithmetic of a dense product but only the
// bytes of the sparse one. fp16 and bf16 on tensor cores, fp32 exactly, by fused multiply-adds.
//
//   forward      y[r, o] = sum over i of w[o, i] x[r, i]
//   transposed   y[r, i] = sum over o of w[o, i] x[r, o]
//   weight_grad  dw[o, i] = sum over r of grad[r, o] x[r, i], of which the kept elements are stored
//
// All are c[a, b] = sum over k of A[a, k] B[b, k]. Block: 64 a by 64 b, 128 threads, 32 k at a
// time, three barriers each; shared 10 KB (18 KB in fp32, 17 KB for weight_grad); 32 sums a thread.
#pragma once

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "nm/cuda/shape.cuh"

namespace fastops::nm::cuda {

enum class Mode { forward, transposed };

inline constexpr int kSide = 64, kDepth = 32, kDenseThreads = 128;

// A tile of A or B, [row][k]. The pitch keeps 16-byte rows aligned and eight of them in different
// banks.
template <typename T>
inline constexpr int kDensePitch = kDepth + 16 / sizeof(T);
template <typename T>
inline constexpr int kDenseTile = kSide * kDensePitch<T>;

// tile[row][k] = x[row0 + row, k0 + k], zeros beyond x.
template <typename T>
__device__ __forceinline__ void load_rows(T* tile, const Rows& x, int64_t row0, int64_t k0) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kDepth; i += kDenseThreads) {
    const int64_t row = row0 + i / kDepth, k = k0 + i % kDepth;
    T value = T(0.f);
    if (row < x.count && k < x.features)
      value = static_cast<const T*>(x.data)[row_offset(x, row) + k * x.feature_stride];
    tile[i / kDepth * kDensePitch<T> + i % kDepth] = value;
  }
}

// tile[feature][k] = x[k0 + k, feature0 + feature], zeros beyond x.
template <typename T>
__device__ __forceinline__ void load_features(T* tile, const Rows& x, int64_t feature0,
                                              int64_t k0) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kDepth; i += kDenseThreads) {
    const int64_t row = k0 + i / kSide, feature = feature0 + i % kSide;
    T value = T(0.f);
    if (row < x.count && feature < x.features)
      value = static_cast<const T*>(x.data)[row_offset(x, row) + feature * x.feature_stride];
    tile[i % kSide * kDensePitch<T> + i / kSide] = value;
  }
}

// Calls f(row, column, position) for every kept element in kRows rows and kCols columns of the
// weight, row and column relative to (row0, col0). Several threads share a row.
template <int kRows, int kCols, typename F>
__device__ __forceinline__ void for_kept(const Shape& s, const uint8_t* indices, int64_t row0,
                                         int64_t col0, F f) {
  constexpr int kShare = kDenseThreads / kRows;
  const int r = static_cast<int>(threadIdx.x) / kShare;
  const int64_t row = row0 + r;
  if (row >= s.out) return;
  const uint8_t* from = indices + row * s.index_bytes;
  // A group is one thread's: indices that someone broke, so that they repeat, still cause no race.
  const int64_t end = min((col0 + kCols + s.m - 1) / s.m, s.groups);
  int64_t group = col0 / s.m + static_cast<int>(threadIdx.x) % kShare;
#pragma unroll 1
  for (; group < end; group += kShare) {
#pragma unroll 1
    for (int64_t q = group * s.n; q < (group + 1) * s.n; ++q) {
      const int64_t col = group * s.m + stored_index(s, from, q) - col0;
      if (col >= 0 && col < kCols) f(r, static_cast<int>(col), row * s.kept + q);
    }
  }
}

template <typename T>
__device__ __forceinline__ void clear(T* tile) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kDepth; i += kDenseThreads)
    tile[i / kDepth * kDensePitch<T> + i % kDepth] = T(0.f);
}

// ---- 64 x 64 sums over 32 k: on tensor cores, and in fp32 -------------------------------------

// 2 x 2 warps of 32 a by 32 b.
template <typename T>
class TileSums {
 public:
  __device__ __forceinline__ TileSums() {
#pragma unroll
    for (int i = 0; i < 32; ++i) d_[i / 16][i / 4 % 4][i % 4] = 0.f;
  }

  __device__ __forceinline__ void add(const T* a, const T* b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned a_at = ptx::smem_addr(a) + address(warp_a() + lane % 16, lane / 16);
    const unsigned b_at =
        ptx::smem_addr(b) + address(warp_b() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      unsigned fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::ldmatrix_x4(fa[i], a_at + address(16 * i, 0) + k * 2);
        ptx::ldmatrix_x4(fb[i], b_at + address(16 * i, 0) + k * 2);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          ptx::mma_m16n8k16<T>(d_[m][n], fa[m], fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]);
    }
  }

  // f(a, b, sum) for each sum of this thread.
  template <typename F>
  __device__ __forceinline__ void each(F f) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          f(warp_a() + 16 * m + g + i / 2 * 8, warp_b() + 8 * n + 2 * t + i % 2, d_[m][n][i]);
  }

 private:
  static __device__ __forceinline__ int warp_a() {
    return static_cast<int>(threadIdx.x) / 32 % 2 * 32;
  }
  static __device__ __forceinline__ int warp_b() { return static_cast<int>(threadIdx.x) / 64 * 32; }
  static __device__ __forceinline__ unsigned address(int row, int chunk) {
    return static_cast<unsigned>(row * kDensePitch<T> * 2 + chunk * 16);
  }
  float d_[2][4][4];
};

// 16 x 8 threads, each a = ta + 16 i and b = tb + 8 j.
template <>
class TileSums<float> {
 public:
  __device__ __forceinline__ TileSums() {
#pragma unroll
    for (int i = 0; i < 32; ++i) d_[i / 8][i % 8] = 0.f;
  }

  // A tile is summed by itself first: one chain over all k would round more than torch's products.
  __device__ __forceinline__ void add(const float* a, const float* b) {
    const unsigned a_at = ptx::smem_addr(a) + ta() * kRowBytes;
    const unsigned b_at = ptx::smem_addr(b) + tb() * kRowBytes;
    float tile[4][8];
#pragma unroll
    for (int i = 0; i < 32; ++i) tile[i / 8][i % 8] = 0.f;
#pragma unroll 2
    for (int k = 0; k < kDepth; k += 4) {
      uint4 va[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) va[i] = ptx::ld_shared_128(a_at + 16 * i * kRowBytes + k * 4);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint4 vb = ptx::ld_shared_128(b_at + 8 * j * kRowBytes + k * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& sum = tile[i][j];
          sum = __fmaf_rn(__uint_as_float(va[i].x), __uint_as_float(vb.x), sum);
          sum = __fmaf_rn(__uint_as_float(va[i].y), __uint_as_float(vb.y), sum);
          sum = __fmaf_rn(__uint_as_float(va[i].z), __uint_as_float(vb.z), sum);
          sum = __fmaf_rn(__uint_as_float(va[i].w), __uint_as_float(vb.w), sum);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) d_[i / 8][i % 8] += tile[i / 8][i % 8];
  }

  template <typename F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) f(ta() + 16 * i, tb() + 8 * j, d_[i][j]);
  }

 private:
  static constexpr unsigned kRowBytes = kDensePitch<float> * 4;
  static __device__ __forceinline__ int ta() { return static_cast<int>(threadIdx.x) % 16; }
  static __device__ __forceinline__ int tb() { return static_cast<int>(threadIdx.x) / 16; }
  float d_[4][8];
};

// ---- kernels ----------------------------------------------------------------------------------

template <typename T, Mode kMode>
__global__ void __launch_bounds__(kDenseThreads)
    dense_matmul_kernel(const __grid_constant__ MatmulParams p, Shape s) {
  __shared__ __align__(16) T tile_a[kDenseTile<T>];
  __shared__ __align__(16) T tile_b[kDenseTile<T>];
  constexpr bool kTransposed = kMode == Mode::transposed;
  const int64_t outputs = kTransposed ? s.in : s.out, depth = kTransposed ? s.out : s.in;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kSide;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kSide;
  const T* values = static_cast<const T*>(p.weights);
  TileSums<T> sums;
#pragma unroll 1
  for (int64_t k = 0; k < depth; k += kDepth) {
    clear(tile_a);
    load_rows(tile_b, p.x, row, k);
    __syncthreads();
    if constexpr (kTransposed) {
      for_kept<kDepth, kSide>(s, p.structure, k, output, [&](int r, int col, int64_t at) {
        tile_a[col * kDensePitch<T> + r] = values[at];
      });
    } else {
      for_kept<kSide, kDepth>(s, p.structure, output, k, [&](int r, int col, int64_t at) {
        tile_a[r * kDensePitch<T> + col] = values[at];
      });
    }
    __syncthreads();
    sums.add(tile_a, tile_b);
    __syncthreads();
  }
  sums.each([&](int a, int b, float sum) {
    if (output + a < outputs && row + b < p.x.count)
      store_output<T>(p, outputs, row + b, output + a, sum);
  });
}

template <typename T>
__global__ void __launch_bounds__(kDenseThreads)
    weight_grad_kernel(const __grid_constant__ WeightGradParams p, Shape s) {
  constexpr int kSumsPitch = kSide + 1;
  __shared__ __align__(16) T tile_a[kDenseTile<T>];
  __shared__ __align__(16) T tile_b[kDenseTile<T>];
  __shared__ float dense[kSide * kSumsPitch];
  const int64_t in = static_cast<int64_t>(blockIdx.x) * kSide;
  const int64_t out = static_cast<int64_t>(blockIdx.y) * kSide;
  TileSums<T> sums;
#pragma unroll 1
  for (int64_t k = 0; k < p.x.count; k += kDepth) {
    load_features(tile_a, p.grad, out, k);
    load_features(tile_b, p.x, in, k);
    __syncthreads();
    sums.add(tile_a, tile_b);
    __syncthreads();
  }
  sums.each([&](int a, int b, float sum) { dense[a * kSumsPitch + b] = sum; });
  __syncthreads();
  for_kept<kSide, kSide>(s, p.indices, out, in, [&](int r, int col, int64_t at) {
    from_float(dense[r * kSumsPitch + col], static_cast<T*>(p.dw)[at]);
  });
}

inline dim3 tiles_of(int64_t x, int64_t y) {
  const int64_t tiles = ceil_div(y, kSide);
  if (tiles > 65535) fail("fastops.nm_linear: more than 4 million rows");
  return dim3(static_cast<unsigned>(ceil_div(x, kSide)), static_cast<unsigned>(tiles));
}

template <typename T>
void run_dense(const MatmulParams& p, void* stream) {
  const auto run = [&](auto* kernel) {
    launch(kernel,
           {"nm dense_matmul", tiles_of(p.outputs(), p.x.count), dim3(kDenseThreads), 0, 1, stream},
           p, shape_of(p.weight));
  };
  if (p.transposed()) run(&dense_matmul_kernel<T, Mode::transposed>);
  else run(&dense_matmul_kernel<T, Mode::forward>);
}

template <typename T>
void run_weight_grad(const WeightGradParams& p, void* stream) {
  launch(&weight_grad_kernel<T>,
         {"nm weight_grad", tiles_of(p.weight.in, p.weight.out), dim3(kDenseThreads), 0, 1, stream},
         p, shape_of(p.weight));
}

}  // namespace fastops::nm::cuda
