// Tiles of 16-bit rows in shared memory, and the fragments that tensor cores take from them. A row
// is kD channels; its 16-byte chunks are swizzled by row, so that neither copies nor ldmatrix meet
// bank conflicts.
#pragma once

#include "attention/cuda/blocks.cuh"
#include "attention/cuda/heuristics.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vector.cuh"

namespace fastops::attention::cuda {

using fastops::cuda::BFloat16;
using fastops::cuda::Half;
using fastops::cuda::pack2;

inline constexpr int kMmaThreads = 128;

template <int kD>
struct Tile {
  static constexpr int kRowBytes = kD * 2, kChunks = kD / 8;
  static constexpr int kFrags = warp_rows(kD) / 16;  // of 16 rows, of a warp
  static constexpr int kRows = warp_rows(kD), kColumns = warp_columns(kD);

  __device__ __forceinline__ static unsigned at(unsigned tile, int row, int chunk) {
    return tile + row * kRowBytes + (chunk ^ (row & 7)) * 16;
  }
};

// a of mma: 16 rows from `row` on, 16 channels from chunk 2 `k` on.
template <int kD>
__device__ __forceinline__ void load_a(unsigned (&a)[4], unsigned tile, int lane, int row, int k) {
  ptx::ldmatrix_x4(a, Tile<kD>::at(tile, row + lane % 16, 2 * k + lane / 16));
}

// b of two mma whose columns are 16 rows of the tile: {b0, b1} of the first 8, then of the others.
template <int kD>
__device__ __forceinline__ void load_b(unsigned (&b)[4], unsigned tile, int lane, int row, int k) {
  ptx::ldmatrix_x4(b, Tile<kD>::at(tile, row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}

// b of two mma that sum over 16 rows of the tile: columns are the channels of chunks 2n and 2n + 1.
template <int kD>
__device__ __forceinline__ void load_b_trans(unsigned (&b)[4], unsigned tile, int lane, int row,
                                             int n) {
  ptx::ldmatrix_x4_trans(b, Tile<kD>::at(tile, row + lane % 16, 2 * n + lane / 16));
}

// scores = rows . columns over kD channels, for this warp's rows and columns.
template <typename T, int kD, int kFrags, int kN>
__device__ __forceinline__ void multiply_rows(float (&scores)[kFrags][kN][4], unsigned rows,
                                              unsigned columns) {
  const int lane = ptx::opaque(int(threadIdx.x) % 32);
#pragma unroll
  for (int m = 0; m < kFrags; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.f;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    unsigned a[kFrags][4];
#pragma unroll
    for (int m = 0; m < kFrags; ++m) load_a<kD>(a[m], rows, lane, m * 16, k);
#pragma unroll
    for (int n = 0; n < kN / 2; ++n) {
      unsigned b[4];
      load_b<kD>(b, columns, lane, n * 16, k);
#pragma unroll
      for (int m = 0; m < kFrags; ++m) {
        ptx::mma_m16n8k16<T>(scores[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_m16n8k16<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// sums += weights . columns, over this warp's columns: what accumulators hold is, pair by pair,
// what a wants.
template <typename T, int kD, int kFrags, int kN>
__device__ __forceinline__ void multiply_columns(float (&sums)[kFrags][kD / 8][4],
                                                 const float (&weights)[kFrags][kN][4],
                                                 unsigned columns) {
  const int lane = ptx::opaque(int(threadIdx.x) % 32);
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
    unsigned a[kFrags][4];
#pragma unroll
    for (int m = 0; m < kFrags; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[m][i] = pack2(T(), weights[m][2 * k + i / 2][i % 2 * 2],
                        weights[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      unsigned b[4];
      load_b_trans<kD>(b, columns, lane, k * 16, n);
#pragma unroll
      for (int m = 0; m < kFrags; ++m) {
        ptx::mma_m16n8k16<T>(sums[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_m16n8k16<T>(sums[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Copies rows [first, end) of a head into a tile of `rows`, zeros where there are none;
// asynchronous, the caller commits. `channels` of them exist; beyond those the tile is left alone.
template <int kD, typename T>
__device__ __forceinline__ void load_rows(unsigned tile, const T* from, int64_t stride, int rows,
                                          int64_t first, int64_t end, int channels) {
  const int chunk = int(threadIdx.x) % Tile<kD>::kChunks;
  if (chunk * 8 >= channels) return;
  const int step = int(blockDim.x) / Tile<kD>::kChunks;
#pragma unroll 2
  for (int r = int(threadIdx.x) / Tile<kD>::kChunks; r < rows; r += step) {
    const unsigned to = Tile<kD>::at(tile, r, chunk);
    if (first + r < end) ptx::cp_async_128(to, from + (first + r) * stride + chunk * 8);
    else ptx::st_shared_128(to, make_uint4(0, 0, 0, 0));
  }
}

// The same for the rows that slots name.
template <int kD, typename T>
__device__ __forceinline__ void load_slots(unsigned tile, const T* from, int64_t stride, int rows,
                                           const Slots& slots, int shift, int64_t length,
                                           int channels) {
  const int chunk = int(threadIdx.x) % Tile<kD>::kChunks;
  if (chunk * 8 >= channels) return;
  const int step = int(blockDim.x) / Tile<kD>::kChunks;
  const int unit = (1 << shift) - 1;
  from += chunk * 8;
  if (!slots.masked) {
#pragma unroll 2
    for (int r = int(threadIdx.x) / Tile<kD>::kChunks; r < rows; r += step)
      ptx::cp_async_128(Tile<kD>::at(tile, r, chunk),
                        from + int64_t{slots.slot[r >> shift].start + (r & unit)} * stride);
    return;
  }
#pragma unroll 1
  for (int r = int(threadIdx.x) / Tile<kD>::kChunks; r < rows; r += step) {
    const int start = slots.slot[r >> shift].start;
    const unsigned to = Tile<kD>::at(tile, r, chunk);
    if (start >= 0 && start + (r & unit) < length)
      ptx::cp_async_128(to, from + int64_t{start + (r & unit)} * stride);
    else ptx::st_shared_128(to, make_uint4(0, 0, 0, 0));
  }
}

// Zeros for what loads leave alone, where there are less than kD channels.
__device__ __forceinline__ void clear_shared(unsigned shared, int bytes) {
#pragma unroll 1
  for (int i = int(threadIdx.x) * 16; i < bytes; i += int(blockDim.x) * 16)
    ptx::st_shared_128(shared + i, make_uint4(0, 0, 0, 0));
  __syncthreads();
}

}  // namespace fastops::attention::cuda
