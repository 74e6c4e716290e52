// mbarriers, bulk and tensor copies, clusters, atomics of the grid: good kernels, and ones with a
// bug.
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/tensor_map.h"
#include "planted.h"

namespace {

using namespace fastops::ptx;
using namespace planted;

constexpr int kTile = 64;  // floats
constexpr unsigned kTileBytes = kTile * 4;

// ---- A ring of two stages: warp 0 loads, warp 1 adds 1 and writes ------------------------------

// Which line of the ring is wrong.
enum class Bug {
  none,
  no_full_wait,
  no_empty_wait,
  early_release,
  wrong_parity,
  expects_more,
  expects_less,
  over_arrival,
  no_init_fence,
  no_init_barrier,
};

template <Bug kBug>
__global__ void ring(const float* x, float* out) {
  __shared__ __align__(128) float tile[2][kTile];
  __shared__ __align__(8) uint64_t full[2], empty[2];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 32) {
    for (int stage = 0; stage < 2; ++stage) {
      mbarrier_init(smem_addr(&full[stage]), 1);
      mbarrier_init(smem_addr(&empty[stage]), kBug == Bug::over_arrival ? 31 : 32);
    }
    if (kBug != Bug::no_init_fence) fence_mbarrier_init();
  }
  if (kBug != Bug::no_init_barrier) __syncthreads();
  for (int i = 0; i < 4; ++i) {
    const int stage = i % 2;
    const unsigned parity = i / 2 % 2;
    if (threadIdx.x < 32) {
      if (kBug != Bug::no_empty_wait) mbarrier_wait(smem_addr(&empty[stage]), parity ^ 1);
      if (lane == 0) {
        const int slip = kBug == Bug::expects_more ? 16 : kBug == Bug::expects_less ? -16 : 0;
        mbarrier_arrive_expect(smem_addr(&full[stage]), kTileBytes + slip);
        bulk_load(smem_addr(tile[stage]), x + i * kTile, kTileBytes, smem_addr(&full[stage]));
      }
    } else {
      const unsigned wanted = kBug == Bug::wrong_parity ? parity ^ 1 : parity;
      if (kBug != Bug::no_full_wait) mbarrier_wait(smem_addr(&full[stage]), wanted);
      if (kBug == Bug::early_release) mbarrier_arrive(smem_addr(&empty[stage]));
      for (int j = lane; j < kTile; j += 32) out[i * kTile + j] = tile[stage][j] + 1.0f;
      if (kBug != Bug::early_release) mbarrier_arrive(smem_addr(&empty[stage]));
    }
  }
  __syncthreads();
}

// The same with cp.async and its arrival.
__global__ void cp_async_ring(const float* x, float* out) {
  __shared__ __align__(16) float tile[128];
  __shared__ __align__(8) uint64_t full;
  if (threadIdx.x == 0) mbarrier_init(smem_addr(&full), 32);
  __syncthreads();
  if (threadIdx.x < 32) {
    cp_async_128(smem_addr(&tile[threadIdx.x * 4]), x + threadIdx.x * 4);
    cp_async_mbarrier_arrive(smem_addr(&full));
  } else {
    mbarrier_wait(smem_addr(&full), 0);
    for (int j = threadIdx.x - 32; j < 128; j += 32) out[j] = tile[127 - j];
  }
}

__global__ void mbarrier_never_initialised(const float*, float* out) {
  __shared__ __align__(8) uint64_t barrier;
  mbarrier_arrive(smem_addr(&barrier));
  out[threadIdx.x] = 1.0f;
}

__global__ void mbarrier_initialised_twice(const float*, float* out) {
  __shared__ __align__(8) uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&barrier), 1);
    mbarrier_init(smem_addr(&barrier), 2);
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void arrives_twice(const float*, float* out) {
  __shared__ __align__(8) uint64_t barrier;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&barrier), 1);
    mbarrier_arrive_expect(smem_addr(&barrier), 64);
    mbarrier_arrive(smem_addr(&barrier));
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void waits_for_too_many(const float*, float* out) {
  __shared__ __align__(8) uint64_t barrier;
  if (threadIdx.x == 0) mbarrier_init(smem_addr(&barrier), 65);
  __syncthreads();
  mbarrier_arrive(smem_addr(&barrier));
  mbarrier_wait(smem_addr(&barrier), 0);
  out[threadIdx.x] = 1.0f;
}

// ---- Stores ----------------------------------------------------------------------------------

__global__ void store_without_fence(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, smem_addr(tile), kTileBytes);
    bulk_commit();
    bulk_wait<0>();
  }
}

__global__ void store_without_barrier(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  tile[threadIdx.x] = x[threadIdx.x];
  fence_proxy_async();
  if (threadIdx.x == 0) {
    bulk_store(out, smem_addr(tile), kTileBytes);
    bulk_commit();
    bulk_wait<0>();
  }
}

template <bool kWait>
__global__ void store_twice(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  for (int i = 0; i < 2; ++i) {
    tile[threadIdx.x] = x[i * kTile + threadIdx.x] + 1.0f;
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      bulk_store(out + i * kTile, smem_addr(tile), kTileBytes);
      bulk_commit();
      if (kWait) bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) bulk_wait_read<0>();
}

__global__ void store_and_exit(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  tile[threadIdx.x] = x[threadIdx.x];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, smem_addr(tile), kTileBytes);
    bulk_commit();
  }
}

__global__ void read_back_too_early(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  tile[threadIdx.x] = x[threadIdx.x];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, smem_addr(tile), kTileBytes);
    bulk_commit();
    bulk_wait_read<0>();
    out[kTile] = out[3];
  }
}

__global__ void load_over_stores(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  __shared__ __align__(8) uint64_t full;
  tile[threadIdx.x] = 0.0f;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&full), 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(smem_addr(&full), kTileBytes);
    bulk_load(smem_addr(tile), x, kTileBytes, smem_addr(&full));
  }
  mbarrier_wait(smem_addr(&full), 0);
  out[threadIdx.x] = tile[threadIdx.x];
}

template <int kOffset, unsigned kBytes>
__global__ void odd_bulk_load(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  __shared__ __align__(8) uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&full), 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(smem_addr(&full), kBytes);
    bulk_load(smem_addr(tile), x + kOffset, kBytes, smem_addr(&full));
  }
  __syncthreads();
  mbarrier_wait(smem_addr(&full), 0);
  out[threadIdx.x] = 1.0f;
}

__global__ void exit_with_load_in_flight(const float* x, float* out) {
  __shared__ __align__(128) float tile[kTile];
  __shared__ __align__(8) uint64_t full[2];
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&full[0]), 2);
    fence_mbarrier_init();
    mbarrier_arrive_expect(smem_addr(&full[0]), kTileBytes);
    bulk_load(smem_addr(tile), x, kTileBytes, smem_addr(&full[0]));
  }
  out[threadIdx.x] = 1.0f;
}

// ---- Tensor copies ---------------------------------------------------------------------------

// A 16 x 16 tile of floats, 8 columns at a time.
template <int kMisplaced>
__global__ void tensor_tile(const __grid_constant__ CUtensorMap map, float* out, bool three) {
  FASTOPS_DYNAMIC_SHARED(raw);
  __shared__ __align__(8) uint64_t full;
  const unsigned tile = smem_addr(raw) + kMisplaced;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&full), 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(smem_addr(&full), 8 * 16 * 4);
    if (three) tma_load(tile, &map, smem_addr(&full), 8, 0, 0);
    else tma_load(tile, &map, smem_addr(&full), 8, 0);
  }
  __syncthreads();
  mbarrier_wait(smem_addr(&full), 0);
  for (int i = threadIdx.x; i < 128; i += kThreads) out[i] = reinterpret_cast<const float*>(raw)[i];
}

template <int kMisplaced>
void run_tensor_tile(int columns, int rows, bool three) {
  Buffers b(256, 1024, simt::Access::read_write);
  const fastops::cuda::TensorMapSpec spec{
      b.x, fastops::DType::f32, 2, {columns, rows}, {0, columns * 4}, {8, 16}, Swizzle::b32};
  run(tensor_tile<kMisplaced>, 1, kThreads, 1024, 1, fastops::cuda::make_tensor_map(spec), b.out,
      three);
  // Row 5 has its two chunks exchanged: (5 / 4) % 2 is 1.
  require(b.out[5 * 8] == 5 * 16 + 8 + 4 && b.out[4] == 12.0f);
}

// ---- Clusters --------------------------------------------------------------------------------

template <bool kFence, bool kBarrier>
__global__ void remote_arrive(const float* x, float* out) {
  __shared__ __align__(8) uint64_t barrier;
  __shared__ __align__(8) uint2 slot;
  if (threadIdx.x == 0) {
    mbarrier_init(smem_addr(&barrier), 1);
    if (kFence) fence_mbarrier_init();
  }
  if (kBarrier) {
    cluster_arrive();
    cluster_wait();
  }
  const unsigned other = 1 - cluster_rank();
  if (threadIdx.x == 0) {
    st_cluster_64(cluster_map(smem_addr(&slot), other), uint2{__float_as_uint(x[other]), 0u});
    mbarrier_arrive_cluster(cluster_map(smem_addr(&barrier), other));
  }
  mbarrier_wait_cluster(smem_addr(&barrier), 0);
  out[blockIdx.x * kThreads + threadIdx.x] = __uint_as_float(slot.x);
}

// ---- Atomics of the grid ---------------------------------------------------------------------

// The block that comes last adds up what all have left.
template <bool kFenceBefore, bool kFenceAfter>
__global__ void last_block_sums(const float* x, float* out) {
  __shared__ int last;
  auto* counter = reinterpret_cast<unsigned*>(out + 1000);
  out[1 + blockIdx.x * kThreads + threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFenceBefore) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (kFenceAfter) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (unsigned i = 0; i < gridDim.x * kThreads; ++i) sum += out[1 + i];
    out[0] = sum;
    *counter = 0;
  }
}

// Each warp polls, without ever waiting, what the other is to count: neither may keep its turn.
__global__ void warps_that_poll(const float*, float* out) {
  auto* counter = reinterpret_cast<unsigned*>(out + 1000);
  const int lane = threadIdx.x % 32;
  if (lane == 0) atomicAdd(counter, 1u);
  for (unsigned all = 0; all < 2;)
    all = __shfl_sync(~0u, lane == 0 ? atomicAdd(counter, 0u) : 0u, 0);
  out[threadIdx.x] = float(threadIdx.x);
}

void run_warps_that_poll() {
  Buffers b(64, 1024, simt::Access::read_write);
  b.out[1000] = 0.0f;
  run(warps_that_poll, 1, 64, 0, 1, b.x, b.out);
  for (int i = 0; i < 64; ++i) require(b.out[i] == float(i));
}

template <bool kFenceBefore, bool kFenceAfter>
void run_last_block() {
  Buffers b(256, 1024, simt::Access::read_write);
  b.out[1000] = 0.0f;
  run(last_block_sums<kFenceBefore, kFenceAfter>, 4, kThreads, 0, 1, b.x, b.out);
  require(b.out[0] == 255 * 256 / 2);
}

// ---- setmaxnreg ------------------------------------------------------------------------------

__global__ void registers_lowered_by_inc(const float*, float* out) {
  setmaxnreg_inc<160>();
  setmaxnreg_inc<120>();
  out[threadIdx.x] = 1.0f;
}

__global__ void registers_no_one_gives(const float*, float* out) {
  if (threadIdx.x < 128) setmaxnreg_dec<160>();
  else setmaxnreg_inc<240>();
  out[threadIdx.x] = 1.0f;
}

template <Bug kBug>
Case ring_case(const char* name, const char* expected) {
  return exact(name, ring<kBug>, {}, 4 * kTile, [](int i) { return float(i) + 1.0f; }, expected);
}

}  // namespace

std::vector<Case> planted::async_cases() {
  const Shape pair{kThreads, 2, 2, 0};
  return {
      ring_case<Bug::none>("ring", ""),
      ring_case<Bug::no_full_wait>("ring_no_full_wait", "async-pending|uninitialised-read"),
      ring_case<Bug::no_empty_wait>("ring_no_empty_wait", "mbarrier-protocol|race|async-pending"),
      ring_case<Bug::early_release>("ring_early_release", "race"),
      ring_case<Bug::wrong_parity>("ring_wrong_parity",
                                   "async-pending|uninitialised-read|deadlock"),
      ring_case<Bug::expects_more>("ring_expects_more", "mbarrier-protocol"),
      ring_case<Bug::expects_less>("ring_expects_less", "mbarrier-protocol"),
      ring_case<Bug::over_arrival>("ring_over_arrival", "mbarrier-protocol|race"),
      ring_case<Bug::no_init_fence>("ring_no_init_fence", "proxy-fence"),
      ring_case<Bug::no_init_barrier>("ring_no_init_barrier", "mbarrier-protocol"),
      exact("cp_async_ring", cp_async_ring, {}, 128, [](int i) { return float(127 - i); }),
      plain("mbarrier_never_initialised", "mbarrier-protocol", mbarrier_never_initialised),
      plain("mbarrier_initialised_twice", "mbarrier-protocol", mbarrier_initialised_twice),
      plain("mbarrier_arrives_twice", "mbarrier-protocol", arrives_twice),
      plain("mbarrier_waits_for_too_many", "deadlock", waits_for_too_many),
      plain("store_without_fence", "proxy-fence", store_without_fence),
      plain("store_without_barrier", "race", store_without_barrier),
      exact("store_twice", store_twice<true>, {}, 128, [](int i) { return float(i) + 1.0f; }),
      plain("store_without_wait", "race", store_twice<false>),
      plain("store_and_exit", "async-pending", store_and_exit),
      plain("read_back_too_early", "async-pending", read_back_too_early),
      plain("load_over_stores", "proxy-fence", load_over_stores),
      plain("bulk_load_of_odd_size", "bulk-copy", odd_bulk_load<0, 24>),
      plain("bulk_load_from_odd_address", "bulk-copy", odd_bulk_load<1, 32>),
      plain("bulk_load_past_end", "out-of-bounds", odd_bulk_load<1016, 64>),
      plain("exit_with_load_in_flight", "async-pending", exit_with_load_in_flight),
      {"tensor_tile", "", [] { run_tensor_tile<0>(16, 16, false); }},
      {"tensor_tile_misplaced", "misaligned", [] { run_tensor_tile<128>(16, 16, false); }},
      {"tensor_tile_wrong_dims", "bulk-copy", [] { run_tensor_tile<0>(16, 16, true); }},
      {"tensor_map_too_long", "out-of-bounds", [] { run_tensor_tile<0>(20, 16, false); }},
      exact("remote_arrive", remote_arrive<true, true>, pair, 128,
            [](int i) { return float(i / kThreads); }),
      plain("remote_arrive_no_fence", "proxy-fence", remote_arrive<false, true>, pair),
      plain("remote_arrive_no_barrier", "cluster-protocol|mbarrier-protocol",
            remote_arrive<true, false>, pair),
      {"warps_that_poll", "", run_warps_that_poll},
      {"last_block_sums", "", run_last_block<true, true>},
      {"last_block_no_release", "block-race", run_last_block<false, true>},
      {"last_block_no_acquire", "block-race", run_last_block<true, false>},
      plain("registers_lowered_by_inc", "setmaxnreg", registers_lowered_by_inc, {128, 1, 1, 0}),
      plain("registers_no_one_gives", "deadlock", registers_no_one_gives, {512, 1, 1, 0}),
  };
}
