// Products of many rows on Hopper's sparse tensor cores, wgmma.sp m64nNk32 (sm_90a). The weight is
// a, compressed, from the packing that mma.sp reads (sparse_tiles.cuh): warp w of a warpgroup holds
// its m tile w, and a lane's fragments and metadata are the words it has there. Rows of x are b, by
// TMA.
#pragma once

#include <type_traits>

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tensor_map.h"
#include "nm/cuda/matmul.h"
#include "nm/cuda/sparse_tiles.cuh"

namespace fastops::nm::cuda {

// Block: 128 outputs by kRows rows of x, 384 threads. One thread of the first warpgroup keeps a
// ring of tiles of 64 inputs filled, kRows * 128 bytes each; the two others take 64 outputs each,
// their weights from L2 into registers, kBuffers blocks ahead of the tensor cores. The kCluster
// blocks of a cluster have the same rows: each fetches its share and sends it to all.
// Shared: 192 KB; registers of a consumer: kRows / 2 sums, 9 of a for each of kBuffers.
inline constexpr int kWarpgroup = 128, kConsumers = 2;
inline constexpr int kConsumerThreads = kConsumers * kWarpgroup;
inline constexpr int kWgmmaThreads = kWarpgroup + kConsumerThreads;
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
inline constexpr int kRingBytes = 192 * 1024;
// Named barriers: of all consumers, and of each one's warpgroup.
inline constexpr int kConsumersMeet = 1, kWarpgroupMeets = 2;

template <int kRows>
inline constexpr int kStageBytes = kRows * kTileInputs * 2;
template <int kRows>
inline constexpr int kRing = kRingBytes / kStageBytes<kRows>;
// 1500 and 1250 cycles of the tensor cores ahead: a load from a busy L2 takes 1000.
template <int kRows>
inline constexpr int kBuffers = kRows == 256 ? 4 : 6;
// The ring and its mbarriers.
template <int kRows>
inline constexpr size_t kWgmmaShared = kRingBytes + kRing<kRows> * 16;

// Where in the ring the next tile is, and the parity of its phase.
template <int kStages>
struct RingPlace {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// What a warp multiplies with a tile of x: its rows of a block of the packing.
struct Fragments {
  unsigned a[2][4];
  unsigned metadata;

  __device__ __forceinline__ void load(const char* weights, const uint8_t* structure) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 v = ptx::ld_global_128(weights + half * (kBlockHalves * 2 / 2));
      a[half][0] = v.x;
      a[half][1] = v.y;
      a[half][2] = v.z;
      a[half][3] = v.w;
    }
    metadata = *reinterpret_cast<const unsigned*>(structure);
  }
};

// Fills the ring with inputs [begin, end), in blocks of 64, of rows [row, row + kRows) of x. One
// thread of each block.
template <int kRows, int kCluster>
__device__ __forceinline__ void produce(const CUtensorMap& x, unsigned ring, unsigned full,
                                        unsigned empty, int row, int begin, int end) {
  constexpr int kBytes = kStageBytes<kRows>;
  RingPlace<kRing<kRows>> place;
  ptx::tma_prefetch(&x);
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    const unsigned barrier = full + place.stage * 8, to = ring + place.stage * kBytes;
    ptx::mbarrier_wait(empty + place.stage * 8, place.parity ^ 1);
    ptx::mbarrier_arrive_expect(barrier, kBytes);
    if constexpr (kCluster == 1) {
      ptx::tma_load(to, &x, barrier, block * kTileInputs, row);
    } else {
      constexpr int kShare = kRows / kCluster;
      const int first = static_cast<int>(ptx::cluster_rank()) * kShare;
      ptx::tma_load_multicast(to + first * (kTileInputs * 2), &x, barrier, (1 << kCluster) - 1,
                              block * kTileInputs, row + first);
    }
    place.advance();
  }
}

// Adds up a warpgroup's products with inputs [begin, end): 64 outputs by kRows rows.
template <typename T, int kRows, int kCluster>
__device__ __forceinline__ void multiply(float (&d)[kRows / 2], const char* weights,
                                         const uint8_t* structure, unsigned ring, unsigned full,
                                         unsigned empty, int begin, int end) {
  constexpr int kAhead = kBuffers<kRows> - 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Fragments fragments[kBuffers<kRows>];
  // Beyond the last block: the last again, for no one.
  const auto load = [&](Fragments& to, int block) {
    const int64_t b = min(block, end - 1);
    to.load(weights + b * (kBlockHalves * 2), structure + b * kBlockMetadataBytes);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load(fragments[i], begin + i);
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) d[i] = 0.f;

  RingPlace<kRing<kRows>> place;
  unsigned before = 0;  // the mbarrier of the stage that the product in flight reads
  ptx::wgmma_hold(d);
#pragma unroll 1
  for (int first = begin; first < end; first += kBuffers<kRows>) {
#pragma unroll
    for (int i = 0; i < kBuffers<kRows>; ++i) {
      if (first + i >= end) break;
      const uint64_t b = ptx::wgmma_descriptor(ring + place.stage * kStageBytes<kRows>, 16, 1024,
                                               ptx::Swizzle::b128);
      const Fragments& f = fragments[i];
      ptx::mbarrier_wait(full + place.stage * 8, place.parity);
      ptx::wgmma_fence();
      ptx::wgmma_sp_rs<T, kRows, 0>(d, f.a[0], b, f.metadata);
      ptx::wgmma_sp_rs<T, kRows, 1>(d, f.a[1], b + 64 / 16, f.metadata);
      ptx::wgmma_commit();
      // The product before is done: its stage may be refilled, its registers take another block.
      // Were the loads before the wait, ptxas would wait for every product.
      ptx::wgmma_wait<1>();
      if (first + i > begin && lane < kCluster) {
        if constexpr (kCluster == 1) {
          ptx::mbarrier_arrive(before);
        } else {
          ptx::mbarrier_arrive_cluster_read(ptx::cluster_map(before, lane));
        }
      }
      load(fragments[(i + kAhead) % kBuffers<kRows>], first + i + kAhead);
      before = empty + place.stage * 8;
      place.advance();
    }
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_hold(d);
}

// gelu and silu one by one: unrolled over the registers of a thread they would spill. `column`: 16
// bytes of a row of shared memory, the next row kConsumerThreads * 16 bytes on.
template <int kCount>
__device__ __forceinline__ void activate_in_shared(Activation activation, float (&d)[kCount],
                                                   unsigned column) {
  constexpr int kRow = kConsumerThreads * 16;
  static_assert(kCount / 4 * kRow <= kRingBytes);
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i)
    ptx::st_shared_128(column + i * kRow,
                       make_uint4(__float_as_uint(d[4 * i]), __float_as_uint(d[4 * i + 1]),
                                  __float_as_uint(d[4 * i + 2]), __float_as_uint(d[4 * i + 3])));
#pragma unroll 1
  for (int i = 0; i < kCount / 4; ++i) {
    uint4 v = ptx::ld_shared_128(column + i * kRow);
    v.x = __float_as_uint(activate(activation, __uint_as_float(v.x)));
    v.y = __float_as_uint(activate(activation, __uint_as_float(v.y)));
    v.z = __float_as_uint(activate(activation, __uint_as_float(v.z)));
    v.w = __float_as_uint(activate(activation, __uint_as_float(v.w)));
    ptx::st_shared_128(column + i * kRow, v);
  }
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    const uint4 v = ptx::ld_shared_128(column + i * kRow);
    d[4 * i] = __uint_as_float(v.x);
    d[4 * i + 1] = __uint_as_float(v.y);
    d[4 * i + 2] = __uint_as_float(v.z);
    d[4 * i + 3] = __uint_as_float(v.w);
  }
}

template <typename T>
__device__ __forceinline__ unsigned pack_pair(float low, float high) {
  T pair[2];
  from_float(low, pair[0]);
  from_float(high, pair[1]);
  return static_cast<unsigned>(fastops::cuda::bits_of(pair)) |
         static_cast<unsigned>(fastops::cuda::bits_of(pair + 1)) << 16;
}

// The tile of a block's cluster: kTogether row tiles go along the outputs together, so that what
// runs at once is about as many rows as outputs and L2 holds its part of the weight.
inline constexpr int kTogether = 4;
struct TileIndex {
  int row, across;
  __device__ __forceinline__ TileIndex(int cluster, int across_tiles, int row_tiles) {
    const int first = cluster / (across_tiles * kTogether) * kTogether;
    const int rest = cluster % (across_tiles * kTogether), rows = min(kTogether, row_tiles - first);
    row = first + rest % rows;
    across = rest / rows;
  }
};

// Hands out each sum with its output and row: store(i, output, row).
template <int kCount, typename Store>
__device__ __forceinline__ void for_sums(int64_t out, int64_t rows, int64_t output, int64_t row,
                                         const Store& store) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int64_t o = output + g + i / 2 % 2 * 8, r = row + i / 4 * 8 + 2 * t + i % 2;
    if (o < out && r < rows) store(i, o, r);
  }
}

// Bias, activation and rounding; then through shared memory to y, 64 outputs a row, where TMA can
// address y. `output`, `row`: the first of the warp.
template <typename T, int kRows>
__device__ __forceinline__ void finish(float (&d)[kRows / 2], const MatmulParams& p, int64_t out,
                                       int64_t output, int row, const CUtensorMap* y,
                                       unsigned ring) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup, lane = thread % 32;
  const int warpgroup = thread / kWarpgroup, warp = thread / 32 % 4;
  if (p.bias) {
    float bias[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t o = min(output + lane / 4 + i * 8, out - 1);
      bias[i] = to_float(static_cast<const T*>(p.bias)[o]);
    }
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) d[i] += bias[i / 2 % 2];
  }
  // Until here the other warpgroup may have been reading the ring.
  ptx::named_barrier_sync(kConsumersMeet, kConsumerThreads);
  if (p.activation == Activation::relu) {
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) d[i] = activate(Activation::relu, d[i]);
  } else if (p.activation != Activation::none) {
    activate_in_shared(p.activation, d, ring + thread * 16);
    ptx::named_barrier_sync(kConsumersMeet, kConsumerThreads);
  }
  if (y == nullptr) {
    for_sums<kRows / 2>(out, p.x.count, output, row, [&](int i, int64_t o, int64_t r) {
      from_float(d[i], static_cast<T*>(p.y)[r * out + o]);
    });
    return;
  }
  const unsigned tile = ring + warpgroup * kStageBytes<kRows>;
#pragma unroll
  for (int j = 0; j < kRows / 8; j += 2) {
    const unsigned pairs[4] = {
        pack_pair<T>(d[4 * j], d[4 * j + 1]), pack_pair<T>(d[4 * j + 2], d[4 * j + 3]),
        pack_pair<T>(d[4 * j + 4], d[4 * j + 5]), pack_pair<T>(d[4 * j + 6], d[4 * j + 7])};
    const int r = (j + lane / 16) * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
    ptx::stmatrix_x4_trans(tile + r * 128 + (chunk ^ (r & 7)) * 16, pairs);
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(kWarpgroupMeets + warpgroup, kWarpgroup);
  if (thread % kWarpgroup == 0 && output < out) {
    ptx::tma_store(y, tile, static_cast<int>(output), row);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
  }
}

template <typename T, int kRows, int kCluster>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_matmul_kernel(const __grid_constant__ MatmulParams p, int64_t out, SparseTiles tiles,
                        int splits, const __grid_constant__ CUtensorMap x_map,
                        const __grid_constant__ CUtensorMap y_map, bool y_mapped, int row_tiles) {
  FASTOPS_DYNAMIC_SHARED(raw);
  const unsigned ring = ptx::smem_addr(raw);
  const unsigned full = ring + kRingBytes, empty = full + kRing<kRows> * 8;
  const int thread = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x), clusters = static_cast<int>(gridDim.x) / kCluster;
  const TileIndex tile(block / kCluster, clusters / row_tiles, row_tiles);
  const int row = tile.row * kRows, across = tile.across * kCluster + block % kCluster;
  const int blocks = static_cast<int>(tiles.in_blocks), split = static_cast<int>(blockIdx.z);
  const int begin = blocks * split / splits, end = blocks * (split + 1) / splits;

  if (thread == 0) {
    for (int i = 0; i < kRing<kRows>; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, kConsumers * 4 * kCluster);
    }
    ptx::fence_mbarrier_init();
  }
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  if (thread < kWarpgroup) {
    ptx::setmaxnreg_dec<kProducerRegisters>();
    if (thread == 0) produce<kRows, kCluster>(x_map, ring, full, empty, row, begin, end);
  } else {
    ptx::setmaxnreg_inc<kConsumerRegisters>();
    const int warpgroup = thread / kWarpgroup - 1, warp = thread / 32 % 4, lane = thread % 32;
    const int64_t out_block = static_cast<int64_t>(across) * kConsumers + warpgroup;
    // A warpgroup beyond the last outputs computes the last ones again, and stores nothing.
    const int64_t at = min(out_block, tiles.out_blocks - 1) * tiles.in_blocks;
    const char* weights =
        static_cast<const char*>(p.weights) + at * (kBlockHalves * 2) + warp * 512 + lane * 16;
    const uint8_t* structure = p.structure + at * kBlockMetadataBytes + lane * 16 + warp * 4;
    const int64_t output = out_block * kTileOutputs + warp * 16;
    float d[kRows / 2];
    multiply<T, kRows, kCluster>(d, weights, structure, ring, full, empty, begin, end);
    if (splits == 1) {
      finish<T, kRows>(d, p, out, output, row, y_mapped ? &y_map : nullptr, ring);
    } else {
      float* sums = static_cast<float*>(p.workspace) + split * p.x.count * out;
      for_sums<kRows / 2>(out, p.x.count, output, row,
                          [&](int i, int64_t o, int64_t r) { sums[r * out + o] = d[i]; });
    }
  }
  if constexpr (kCluster > 1) {
    // A block stays while others may send to it.
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

template <typename T>
void run_wgmma(const MatmulParams& p, const SparsePlan& plan, void* stream) {
  const SparseTiles tiles = sparse_tiles_of(p.weight);
  const int64_t out = p.weight.out, size = size_of(p.x.dtype);
  constexpr auto b128 = ptx::Swizzle::b128;
  const CUtensorMap x = fastops::cuda::make_tensor_map({p.x.data,
                                                        p.x.dtype,
                                                        2,
                                                        {p.x.features, p.x.count},
                                                        {0, p.x.stride[0] * size},
                                                        {kTileInputs, plan.rows / plan.cluster},
                                                        b128});
  const bool y_mapped =
      plan.splits == 1 && out * size % 16 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  CUtensorMap y{};
  if (y_mapped)
    y = fastops::cuda::make_tensor_map(
        {p.y, p.x.dtype, 2, {out, p.x.count}, {0, out * size}, {kTileOutputs, plan.rows}, b128});
  const int64_t row_tiles = ceil_div(p.x.count, plan.rows);
  const int64_t blocks =
      ceil_div(ceil_div(out, plan.outputs), plan.cluster) * plan.cluster * row_tiles;
  if (blocks > INT32_MAX) fail("fastops.nm_linear: more than 2^31 tiles");
  const dim3 grid(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(plan.splits));
  const auto run = [&](auto* kernel, size_t shared) {
    launch(kernel,
           {"nm wgmma_matmul", grid, dim3(kWgmmaThreads), shared,
            static_cast<unsigned>(plan.cluster), stream},
           p, out, tiles, static_cast<int>(plan.splits), x, y, y_mapped,
           static_cast<int>(row_tiles));
  };
  const auto run_rows = [&]<int kRows>(std::integral_constant<int, kRows>) {
    static_assert(kWgmmaShared<kRows> + 1024 <= 228 * 1024);
    if (plan.cluster == 4) run(&wgmma_matmul_kernel<T, kRows, 4>, kWgmmaShared<kRows>);
    else if (plan.cluster == 2) run(&wgmma_matmul_kernel<T, kRows, 2>, kWgmmaShared<kRows>);
    else run(&wgmma_matmul_kernel<T, kRows, 1>, kWgmmaShared<kRows>);
  };
  if (plan.rows == 256) run_rows(std::integral_constant<int, 256>{});
  else run_rows(std::integral_constant<int, 128>{});
}

}  // namespace fastops::nm::cuda
