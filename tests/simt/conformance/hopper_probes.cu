// sm_90: stmatrix, mbarriers, bulk copies, clusters, setmaxnreg.
#include <utility>

#include "conformance/manual.h"
#include "conformance/probe.h"
#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/stmatrix.cuh"

namespace conformance {
namespace {

using namespace fastops::ptx;

// ---- stmatrix --------------------------------------------------------------------------------

template <int kCount, bool kTransposed>
__global__ void stmatrix_probe(unsigned* out) {
  __shared__ __align__(16) unsigned tile[kCount * 32];
  const unsigned lane = threadIdx.x;
  const unsigned row = lane < 8 * kCount ? 8 * kCount - 1 - lane : 0;
  const unsigned address = smem_addr(&tile[row * 4]);
  unsigned r[kCount];
  for (unsigned i = 0; i < kCount; ++i) {
    const unsigned word = i * 32 + lane;
    r[i] = 2 * word | (2 * word + 1) << 16;
  }
  if constexpr (kCount == 1 && !kTransposed) stmatrix_x1(address, r[0]);
  if constexpr (kCount == 1 && kTransposed) stmatrix_x1_trans(address, r[0]);
  if constexpr (kCount == 2 && !kTransposed) stmatrix_x2(address, r);
  if constexpr (kCount == 2 && kTransposed) stmatrix_x2_trans(address, r);
  if constexpr (kCount == 4 && !kTransposed) stmatrix_x4(address, r);
  if constexpr (kCount == 4 && kTransposed) stmatrix_x4_trans(address, r);
  __syncwarp();
  for (unsigned i = 0; i < kCount; ++i) out[i * 32 + lane] = tile[i * 32 + lane];
}

template <int kCount, bool kTransposed>
Words run_stmatrix() {
  const Array out = Array::output(kCount * 32);
  launch(stmatrix_probe<kCount, kTransposed>, 1, 32, 0, 1, out.data());
  return out.words();
}

// Thread 4r + c stores elements 2c and 2c + 1 of row r; with .trans of column r.
template <int kCount, bool kTransposed>
Words manual_stmatrix() {
  Words words(kCount * 32, 0);
  for (int matrix = 0; matrix < kCount; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 2; ++e) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        if (kTransposed) std::swap(row, column);
        const int tile_row = 8 * kCount - 1 - (matrix * 8 + row);
        const uint32_t value = uint32_t(2 * (matrix * 32 + lane) + e);
        words[size_t(tile_row * 4 + column / 2)] |= value << (column % 2 * 16);
      }
    }
  }
  return words;
}

template <int kCount>
void add_stmatrix(std::vector<Probe>& probes) {
  const std::string name = "stmatrix_x" + std::to_string(kCount);
  probes.push_back({name, 90, run_stmatrix<kCount, false>, manual_stmatrix<kCount, false>});
  probes.push_back(
      {name + "_trans", 90, run_stmatrix<kCount, true>, manual_stmatrix<kCount, true>});
}

// ---- mbarrier --------------------------------------------------------------------------------

// Two warps pass a number to and fro through both phases of two barriers.
__global__ void parity_probe(unsigned* out) {
  __shared__ __align__(8) uint64_t barriers[2];
  __shared__ unsigned number;
  const unsigned there = smem_addr(&barriers[0]), back = smem_addr(&barriers[1]);
  if (threadIdx.x == 0) {
    number = 0;
    mbarrier_init(there, 1);
    mbarrier_init(back, 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  for (unsigned round = 0; round < 5; ++round) {
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0) {
        number = number * 3 + 1;
        mbarrier_arrive(there);
      }
      mbarrier_wait(back, round % 2);
    } else {
      mbarrier_wait(there, round % 2);
      out[round * 32 + threadIdx.x - 32] = number * 32 + threadIdx.x - 32;
      mbarrier_arrive(back);
    }
  }
}

Words run_parity() {
  const Array out = Array::output(160);
  launch(parity_probe, 1, 64, 0, 1, out.data());
  return out.words();
}

Words manual_parity() {
  Words words;
  for (uint32_t round = 0, number = 1; round < 5; ++round, number = number * 3 + 1)
    for (uint32_t lane = 0; lane < 32; ++lane) words.push_back(number * 32 + lane);
  return words;
}

// "The phase before the first": waiting for parity 1 of a fresh barrier returns at once. Bytes that
// arrive before they are expected count.
__global__ void early_bytes_probe(const unsigned* in, unsigned* out) {
  __shared__ __align__(128) unsigned tile[32];
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(address, 2);
    fence_mbarrier_init();
  }
  __syncwarp();
  mbarrier_wait(address, 1);
  if (threadIdx.x == 0) {
    bulk_load(smem_addr(tile), in, 64, address);
    mbarrier_arrive_expect(address, 128);
    bulk_load(smem_addr(tile + 16), in + 16, 64, address);
  }
  if (threadIdx.x == 1) mbarrier_arrive(address);
  mbarrier_wait(address, 0);
  out[threadIdx.x] = tile[threadIdx.x];
}

Words run_early_bytes() {
  const Array in = Array::input(counting(32)), out = Array::output(32);
  launch(early_bytes_probe, 1, 32, 0, 1, in.data(), out.data());
  return out.words();
}
Words manual_early_bytes() { return counting(32); }

// Bytes expected without arriving; then the barrier is dissolved, and its place holds another.
__global__ void expect_probe(const unsigned* in, unsigned* out) {
  __shared__ __align__(128) unsigned tile[32];
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(address, 1);
    fence_mbarrier_init();
    mbarrier_expect(address, 128);
    bulk_load(smem_addr(tile), in, 128, address);
    mbarrier_arrive(address);
  }
  __syncwarp();
  mbarrier_wait(address, 0);
  out[threadIdx.x] = tile[threadIdx.x];
  __syncwarp();
  if (threadIdx.x == 0) {
    mbarrier_invalidate(address);
    mbarrier_init(address, 32);
  }
  __syncwarp();
  tile[threadIdx.x] = threadIdx.x;
  mbarrier_arrive(address);
  mbarrier_wait(address, 0);
  out[32 + threadIdx.x] = tile[31 - threadIdx.x];
}

Words run_expect() {
  const Array in = Array::input(counting(32)), out = Array::output(64);
  launch(expect_probe, 1, 32, 0, 1, in.data(), out.data());
  return out.words();
}

Words manual_expect() {
  Words words = counting(32);
  for (uint32_t lane = 0; lane < 32; ++lane) words.push_back(31 - lane);
  return words;
}

// ---- Bulk copies -----------------------------------------------------------------------------

// In, one word on, and out again.
__global__ void bulk_probe(const unsigned* in, unsigned* out) {
  __shared__ __align__(128) unsigned from[64], to[64];
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(address, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(address, 256);
    bulk_load(smem_addr(from), in, 256, address);
  }
  __syncthreads();
  mbarrier_wait(address, 0);
  to[threadIdx.x] = from[(threadIdx.x + 1) % 64];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, smem_addr(to), 128);
    bulk_commit();
    bulk_store(out + 32, smem_addr(to + 32), 128);
    bulk_commit();
    bulk_wait_read<1>();
    bulk_wait<0>();
  }
}

Words run_bulk() {
  const Array in = Array::input(counting(64)), out = Array::output(64);
  launch(bulk_probe, 1, 64, 0, 1, in.data(), out.data());
  return out.words();
}

Words manual_bulk() {
  Words words = counting(64);
  words.push_back(words[0]);
  words.erase(words.begin());
  return words;
}

// ---- Clusters --------------------------------------------------------------------------------

// Two blocks. Each multicasts half of the input to both, sends its rank to the other with st.async
// and copies a piece of its shared memory there.
__global__ void multicast_probe(const unsigned* in, unsigned* out) {
  __shared__ __align__(128) unsigned tile[64], mine[32], theirs[32];
  __shared__ __align__(8) uint2 note;
  __shared__ __align__(8) uint64_t barrier;
  const unsigned address = smem_addr(&barrier), rank = cluster_rank(), other = 1 - rank;
  if (threadIdx.x < 32) mine[threadIdx.x] = 100 * rank + threadIdx.x;
  if (threadIdx.x == 0) {
    mbarrier_init(address, 1);
    fence_mbarrier_init();
  }
  fence_proxy_async();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(address, 256 + 128 + 8);
    bulk_load_multicast(smem_addr(tile + 32 * rank), in + 32 * rank, 128, address, 3);
    const unsigned their_barrier = cluster_map(address, other);
    st_async_64(cluster_map(smem_addr(&note), other), uint2{rank + 5, rank + 9}, their_barrier);
    bulk_copy_to_cluster(cluster_map(smem_addr(theirs), other), smem_addr(mine), 128,
                         their_barrier);
  }
  mbarrier_wait(address, 0);
  unsigned* const here = out + blockIdx.x * 98;
  here[threadIdx.x] = tile[threadIdx.x];
  if (threadIdx.x < 32) here[64 + threadIdx.x] = theirs[threadIdx.x];
  if (threadIdx.x == 0) {
    here[96] = note.x;
    here[97] = note.y;
  }
  cluster_arrive();
  cluster_wait();
}

Words run_multicast() {
  const Array in = Array::input(counting(64)), out = Array::output(196);
  launch(multicast_probe, 2, 64, 0, 2, in.data(), out.data());
  return out.words();
}

Words manual_multicast() {
  Words words;
  for (uint32_t other : {1u, 0u}) {
    for (uint32_t word : counting(64)) words.push_back(word);
    for (uint32_t i = 0; i < 32; ++i) words.push_back(100 * other + i);
    words.push_back(other + 5);
    words.push_back(other + 9);
  }
  return words;
}

// A barrier of block 0 that the other block's threads complete. kRead: they have only read.
template <bool kRead>
__global__ void remote_arrive_probe(unsigned* out) {
  __shared__ __align__(8) uint64_t barrier;
  __shared__ __align__(8) uint2 slots[32];
  const unsigned address = smem_addr(&barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(address, 32);
    fence_mbarrier_init();
  }
  cluster_arrive();
  cluster_wait();
  if (cluster_rank() == 1) {
    if constexpr (kRead) {
      mbarrier_arrive_cluster_read(cluster_map(address, 0));
    } else {
      st_cluster_64(cluster_map(smem_addr(&slots[threadIdx.x]), 0), uint2{threadIdx.x * 3, 1u});
      mbarrier_arrive_cluster(cluster_map(address, 0));
    }
  } else {
    if (kRead) slots[threadIdx.x].x = threadIdx.x * 3;
    __syncwarp();
    if constexpr (kRead) mbarrier_wait(address, 0);
    else mbarrier_wait_cluster(address, 0);
    out[threadIdx.x] = slots[31 - threadIdx.x].x;
  }
}

template <bool kRead>
Words run_remote_arrive() {
  const Array out = Array::output(32);
  launch(remote_arrive_probe<kRead>, 2, 32, 0, 2, out.data());
  return out.words();
}
Words manual_remote_arrive() {
  Words words;
  for (uint32_t i = 0; i < 32; ++i) words.push_back((31 - i) * 3);
  return words;
}

// ---- setmaxnreg ------------------------------------------------------------------------------

// One warpgroup gives registers up, the other takes them.
__global__ void __launch_bounds__(256, 1) registers_probe(unsigned* out) {
  if (threadIdx.x < 128) {
    setmaxnreg_dec<40>();
    out[threadIdx.x] = threadIdx.x;
  } else {
    setmaxnreg_inc<240>();
    out[threadIdx.x] = 2 * threadIdx.x;
  }
}

Words run_registers() {
  const Array out = Array::output(256);
  launch(registers_probe, 1, 256, 0, 1, out.data());
  return out.words();
}
Words manual_registers() {
  Words words;
  for (uint32_t i = 0; i < 256; ++i) words.push_back(i < 128 ? i : 2 * i);
  return words;
}

}  // namespace

std::vector<Probe> hopper_probes() {
  std::vector<Probe> probes;
  add_stmatrix<1>(probes);
  add_stmatrix<2>(probes);
  add_stmatrix<4>(probes);
  probes.push_back({"mbarrier_parity", 90, run_parity, manual_parity});
  probes.push_back({"mbarrier_early_bytes", 90, run_early_bytes, manual_early_bytes});
  probes.push_back({"mbarrier_expect", 90, run_expect, manual_expect});
  probes.push_back({"bulk_copy", 90, run_bulk, manual_bulk});
  probes.push_back({"cluster_multicast", 90, run_multicast, manual_multicast});
  probes.push_back({"cluster_remote_arrive", 90, run_remote_arrive<false>, manual_remote_arrive});
  probes.push_back(
      {"cluster_remote_arrive_read", 90, run_remote_arrive<true>, manual_remote_arrive});
  probes.push_back({"setmaxnreg", 90, run_registers, manual_registers});
  return probes;
}

}  // namespace conformance
