// Products on sparse tensor cores, mma.sp m16n8k32: the weight is A, compressed, its fragments
// loaded straight from memory in their order (sparse_tiles.cuh); a row of x is a column of B.
#pragma once

#include <type_traits>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma_sparse.cuh"
#include "nm/cuda/matmul.h"
#include "nm/cuda/sparse_tiles.cuh"

namespace fastops::nm::cuda {

// Sums of a block's share of the inputs, where several blocks share them: [split][row][output].
__device__ __forceinline__ float* partial_sums(const MatmulParams& p, int64_t rows, int64_t out,
                                               int64_t split) {
  return static_cast<float*>(p.workspace) + split * rows * out;
}

// Hands out the four sums of a fragment: outputs g and g + 8, rows 2t and 2t + 1.
template <typename T>
__device__ __forceinline__ void store_fragment(const MatmulParams& p, const Shape& s, int64_t rows,
                                               bool whole, int64_t split, int64_t output,
                                               int64_t row, const float (&d)[4]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t o = output + g + i / 2 * 8, r = row + 2 * t + i % 2;
    if (o >= s.out || r >= rows) continue;
    if (whole) store_output<T>(p, s.out, r, o, d[i]);
    else partial_sums(p, rows, s.out, split)[r * s.out + o] = d[i];
  }
}

__device__ __forceinline__ void load_128(unsigned (&to)[4], const void* from) {
  const uint4 v = ptx::ld_global_128(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// Two neighbouring inputs of a row of x as B wants them; zeros beyond x.
template <typename T>
__device__ __forceinline__ unsigned load_pair(const Rows& x, const T* from, bool inside,
                                              int64_t input, bool paired) {
  if (!inside || input >= x.features) return 0;
  if (paired) return *reinterpret_cast<const unsigned*>(from + input);
  unsigned pair = fastops::cuda::bits_of(from + input * x.feature_stride);
  if (input + 1 < x.features)
    pair |= static_cast<unsigned>(fastops::cuda::bits_of(from + (input + 1) * x.feature_stride))
            << 16;
  return pair;
}

// ---- many rows --------------------------------------------------------------------------------
// Block: 128 outputs by 16 kTiles rows, 2 x 2 warps of 64 outputs by 8 kTiles rows. x goes through
// a ring of kStages tiles of 64 inputs, 128 bytes a row, 16-byte chunks swizzled by row (no bank
// conflicts); the weight from L2 into registers. Shared: kStages * 2048 kTiles bytes (64 KB at
// kTiles = 8); registers: 16 kTiles sums, 20 of a fragment.
inline constexpr int kStages = 4, kSparseThreads = 128;

template <int kTiles>
inline constexpr size_t kSparseShared = size_t(kStages) * kTiles * 16 * 128;

template <typename T, int kTiles, bool kAligned>
class XTile {
 public:
  static constexpr int kRows = 16 * kTiles, kBytes = kRows * 128;

  __device__ __forceinline__ XTile(const Rows& x, int64_t row, unsigned shared)
      : x_(x), shared_(shared), row_(row) {}

  // Fills stage `stage` with inputs [64 block, 64 block + 64); zeros beyond x.
  __device__ __forceinline__ void load(int64_t block, int stage) const {
    const int chunk = static_cast<int>(threadIdx.x) % 8;
    const int64_t input = block * kTileInputs + chunk * 8;
    // Few addresses at once: the sums leave no registers for more.
#pragma unroll(kAligned ? 2 : 1)
    for (int i = 0; i < kRows * 8 / kSparseThreads; ++i) {
      const int r = static_cast<int>(threadIdx.x) / 8 + i * (kSparseThreads / 8);
      const unsigned to = shared_ + stage * kBytes + r * 128 + (chunk ^ (r & 7)) * 16;
      const bool inside = row_ + r < x_.count && input < x_.features;
      const T* from = static_cast<const T*>(x_.data);
      if constexpr (kAligned) {
        if (inside) ptx::cp_async_128(to, from + (row_ + r) * x_.stride[0] + input);
        else ptx::st_shared_128(to, make_uint4(0, 0, 0, 0));
      } else {
        uint4 pairs = make_uint4(0, 0, 0, 0);
        if (inside) {
          from += row_offset(x_, row_ + r);
          pairs.x = pair(from, input);
          pairs.y = pair(from, input + 2);
          pairs.z = pair(from, input + 4);
          pairs.w = pair(from, input + 6);
        }
        ptx::st_shared_128(to, pairs);
      }
    }
  }

  // B of mma.sp: 32 inputs from 32 half on, of rows [row, row + 8) of the tile.
  __device__ __forceinline__ void fragment(unsigned (&b)[4], int stage, int row, int half) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int r = row + lane % 8, chunk = half * 4 + lane / 8;
    ptx::ldmatrix_x4(b, shared_ + stage * kBytes + r * 128 + (chunk ^ (r & 7)) * 16);
  }

 private:
  __device__ __forceinline__ unsigned pair(const T* from, int64_t input) const {
    return load_pair(x_, from, true, input, false);
  }

  const Rows& x_;
  unsigned shared_;
  int64_t row_;
};

template <typename T, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kSparseThreads, 2)
    sparse_matmul_kernel(const __grid_constant__ MatmulParams p, Shape s, SparseTiles tiles,
                         int splits) {
  FASTOPS_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * (16 * kTiles);
  const int64_t out_block = static_cast<int64_t>(blockIdx.x) * 2 + warp % 2;
  // A warp beyond the last outputs computes the last ones again, and stores nothing.
  const int64_t out_read = min(out_block, tiles.out_blocks - 1);
  const int64_t split = blockIdx.z;
  const int64_t begin = tiles.in_blocks * split / splits;
  const int64_t end = tiles.in_blocks * (split + 1) / splits;
  const XTile<T, kTiles, kAligned> x(p.x, row, ptx::smem_addr(shared));
  const int warp_row = warp / 2 * 8 * kTiles;

  float d[4][kTiles][4];
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[m][n][i] = 0.f;

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (begin + i < end) x.load(begin + i, i);
    ptx::cp_async_commit();
  }
#pragma unroll 1
  for (int64_t block = begin; block < end; ++block) {
    const int stage = static_cast<int>((block - begin) % kStages);
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    if (block + kStages - 1 < end)
      x.load(block + kStages - 1, static_cast<int>((block - begin + kStages - 1) % kStages));
    ptx::cp_async_commit();

    const int64_t at = out_read * tiles.in_blocks + block;
    const char* weights = static_cast<const char*>(p.weights) + at * (kBlockHalves * 2) + lane * 16;
    unsigned metadata[4];
    load_128(metadata, p.structure + at * kBlockMetadataBytes + lane * 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned a[4][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) load_128(a[m], weights + (half * 4 + m) * 512);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        unsigned b[4];
        x.fragment(b, stage, warp_row + n * 8, half);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          if (half == 0) ptx::mma_sp_m16n8k32<T, 0>(d[m][n], a[m], b, metadata[m]);
          else ptx::mma_sp_m16n8k32<T, 1>(d[m][n], a[m], b, metadata[m]);
        }
      }
    }
  }
  if (out_block >= tiles.out_blocks) return;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      store_fragment<T>(p, s, p.x.count, splits == 1, split, out_block * kTileOutputs + m * 16,
                        row + warp_row + n * 8, d[m][n]);
}

// ---- a few rows -------------------------------------------------------------------------------
// Block: 64 outputs by 8 kTiles rows; its eight warps take blocks of 64 inputs in turn and add up
// their sums in a fixed order. Bound by the weight's bytes, 4.5 KB a block; x comes from L1.
// Registers: 16 kTiles sums, 32 of fragments in flight.
inline constexpr int kStreamWarps = 8;

template <typename T, int kTiles>
__global__ void __launch_bounds__(kStreamWarps * 32, 2)
    sparse_stream_kernel(const __grid_constant__ MatmulParams p, Shape s, SparseTiles tiles,
                         int splits, bool paired) {
  __shared__ float sums[kStreamWarps][kTileOutputs * 8 * kTiles];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int64_t out_block = blockIdx.x, split = blockIdx.z;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * (8 * kTiles);
  const int64_t begin = tiles.in_blocks * split / splits;
  const int64_t end = tiles.in_blocks * (split + 1) / splits;

  const T* from[kTiles];
  bool inside[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    inside[n] = row + n * 8 + g < p.x.count;
    from[n] = static_cast<const T*>(p.x.data) + (inside[n] ? row_offset(p.x, row + n * 8 + g) : 0);
  }
  float d[4][kTiles][4];
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[m][n][i] = 0.f;

#pragma unroll 1
  for (int64_t block = begin + warp; block < end; block += kStreamWarps) {
    const int64_t at = out_block * tiles.in_blocks + block;
    const char* weights = static_cast<const char*>(p.weights) + at * (kBlockHalves * 2) + lane * 16;
    unsigned metadata[4], a[2][4][4];
    load_128(metadata, p.structure + at * kBlockMetadataBytes + lane * 16);
#pragma unroll
    for (int i = 0; i < 8; ++i) load_128(a[i / 4][i % 4], weights + i * 512);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        unsigned b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          b[i] = load_pair(p.x, from[n], inside[n], block * kTileInputs + half * 32 + i * 8 + t * 2,
                           paired);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          if (half == 0) ptx::mma_sp_m16n8k32<T, 0>(d[m][n], a[half][m], b, metadata[m]);
          else ptx::mma_sp_m16n8k32<T, 1>(d[m][n], a[half][m], b, metadata[m]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[warp][(n * 8 + 2 * t + i % 2) * kTileOutputs + m * 16 + g + i / 2 * 8] = d[m][n][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTileOutputs * 8 * kTiles;
       i += kStreamWarps * 32) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kStreamWarps; ++w) sum += sums[w][i];
    const int64_t o = out_block * kTileOutputs + i % kTileOutputs, r = row + i / kTileOutputs;
    if (o >= s.out || r >= p.x.count) continue;
    if (splits == 1) store_output<T>(p, s.out, r, o, sum);
    else partial_sums(p, p.x.count, s.out, split)[r * s.out + o] = sum;
  }
}

// The second pass of shared inputs: adds the splits in order and finishes.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_splits_kernel(const __grid_constant__ MatmulParams p, Shape s, int splits) {
  const int64_t size = p.x.count * s.out;
  for (int64_t i = first_thread(); i < size; i += all_threads()) {
    float sum = 0.f;
#pragma unroll 1
    for (int k = 0; k < splits; ++k) sum += static_cast<const float*>(p.workspace)[k * size + i];
    store_output<T>(p, s.out, i / s.out, i % s.out, sum);
  }
}

// Whether every row of x starts on, and steps by, a multiple of `elements`.
inline bool aligned_rows(const Rows& x, int64_t elements) {
  bool aligned = x.feature_stride == 1 && x.features % elements == 0 &&
                 reinterpret_cast<uintptr_t>(x.data) % (elements * size_of(x.dtype)) == 0;
  for (int d = 0; d < x.dims; ++d) aligned = aligned && x.stride[d] % elements == 0;
  return aligned;
}

template <typename T>
void run_sparse(const MatmulParams& p, void* stream) {
  const Shape s = shape_of(p.weight);
  const SparseTiles tiles = sparse_tiles_of(p.weight);
  const SparsePlan plan = plan_of(p);
  const int splits = static_cast<int>(plan.splits);
  const dim3 grid(static_cast<unsigned>(ceil_div(s.out, plan.outputs)),
                  static_cast<unsigned>(ceil_div(p.x.count, plan.rows)),
                  static_cast<unsigned>(splits));
  if (plan.kernel != SparseKernel::wgmma && grid.y > 65535u)
    fail("fastops.nm_linear: more than 8 million rows");
  if (plan.kernel == SparseKernel::wgmma) {
#ifdef FASTOPS_CUDA_SM90
    if constexpr (std::is_same_v<T, Half>) run_wgmma_f16(p, plan, stream);
    else run_wgmma_bf16(p, plan, stream);
#endif
  } else if (plan.kernel == SparseKernel::stream) {
    const bool paired = aligned_rows(p.x, 2);
    const fastops::cuda::Launch config{
        "nm sparse_stream", grid, dim3(kStreamWarps * 32), 0, 1, stream};
    if (plan.rows == 8) launch(&sparse_stream_kernel<T, 1>, config, p, s, tiles, splits, paired);
    else launch(&sparse_stream_kernel<T, 2>, config, p, s, tiles, splits, paired);
  } else {
    const auto run = [&](auto* kernel, size_t shared) {
      launch(kernel, {"nm sparse_matmul", grid, dim3(kSparseThreads), shared, 1, stream}, p, s,
             tiles, splits);
    };
    const bool aligned = p.x.dims <= 1 && aligned_rows(p.x, 8);
    if (plan.rows == 64 && aligned) run(&sparse_matmul_kernel<T, 4, true>, kSparseShared<4>);
    else if (plan.rows == 64) run(&sparse_matmul_kernel<T, 4, false>, kSparseShared<4>);
    else if (aligned) run(&sparse_matmul_kernel<T, 8, true>, kSparseShared<8>);
    else run(&sparse_matmul_kernel<T, 8, false>, kSparseShared<8>);
  }
  if (splits > 1)
    launch(&add_splits_kernel<T>,
           {"nm add_splits", grid_of(p.x.count * s.out), dim3(kThreads), 0, 1, stream}, p, s,
           splits);
}

}  // namespace fastops::nm::cuda
