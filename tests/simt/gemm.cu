// The product that tests/simt/cost.py times: a 64 x 64 x 32 tile for 128 threads, cp.async in two
// stages, ldmatrix, mma. Swizzled as a kernel should be, or not, for tests of the counters.
#include <vector>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "simt/entry.h"

namespace {

using namespace fastops::ptx;

constexpr int kTile = 64, kDepth = 32, kRowChunks = kDepth / 8;

// Byte offset of the 16-byte chunk `chunk` of row `row` in a tile of 64-byte rows.
template <bool kSwizzled>
__device__ __forceinline__ unsigned at(int row, int chunk) {
  const int place = kSwizzled ? chunk ^ row / 2 % kRowChunks : chunk;
  return unsigned(row * kDepth * 2 + place * 16);
}

// out = a b', all n x n, row-major; n a multiple of 64.
template <bool kSwizzled>
__global__ void __launch_bounds__(128) gemm(const __half* a, const __half* b, float* out, int n) {
  FASTOPS_DYNAMIC_SHARED(raw);
  constexpr unsigned kTileBytes = kTile * kDepth * 2;
  const unsigned shared = smem_addr(raw);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const auto load = [&](int stage, int k) {
    for (int i = thread; i < kTile * kRowChunks; i += 128) {
      const int row = i / kRowChunks, chunk = i % kRowChunks;
      const unsigned to = shared + stage * 2 * kTileBytes + at<kSwizzled>(row, chunk);
      cp_async_128(to, a + size_t(row0 + row) * n + k + chunk * 8);
      cp_async_128(to + kTileBytes, b + size_t(column0 + row) * n + k + chunk * 8);
    }
    cp_async_commit();
  };
  float d[2][4][4] = {};  // 32 x 32 of the warp
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  load(0, 0);
  for (int k = 0; k < n; k += kDepth) {
    const int stage = k / kDepth % 2;
    cp_async_wait<0>();
    __syncthreads();
    if (k + kDepth < n) load(1 - stage, k + kDepth);
    const unsigned tile_a = shared + stage * 2 * kTileBytes, tile_b = tile_a + kTileBytes;
    for (int step = 0; step < 2; ++step) {
      unsigned fa[2][4], fb[2][4];
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row + i * 16 + lane % 16, chunk = step * 2 + lane / 16;
        ldmatrix_x4(fa[i], tile_a + at<kSwizzled>(row, chunk));
        const int column = warp_column + i * 16 + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(fb[i], tile_b + at<kSwizzled>(column, step * 2 + lane / 8 % 2));
      }
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
          mma_m16n8k16<__half>(d[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + warp_row + i * 16 + half * 8 + lane / 4;
        const int column = column0 + warp_column + j * 8 + lane % 4 * 2;
        const uint2 pair{__float_as_uint(d[i][j][half * 2]),
                         __float_as_uint(d[i][j][half * 2 + 1])};
        st_global_64(out + size_t(row) * n + column, pair);
      }
    }
  }
}

template <bool kSwizzled>
void run(const simt::Call& call) {
  const simt::Array &a = call.array("a"), &b = call.array("b"), &out = call.array("out");
  const int n = int(a.sizes[0]);
  simt::launch("gemm", gemm<kSwizzled>, dim3(n / kTile, n / kTile), dim3(128),
               4 * kTile * kDepth * 2, 1, static_cast<const __half*>(a.data),
               static_cast<const __half*>(b.data), static_cast<float*>(out.data), n);
}

const simt::Entry kGemm("gemm", run<true>);
const simt::Entry kGemmUnswizzled("gemm_unswizzled", run<false>);

}  // namespace
