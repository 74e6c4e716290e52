// Long rows held in shared memory while the next row is already on its way: persistent blocks, or,
// on sm_90, persistent clusters of blocks that share a row, fed by bulk copies.
#pragma once

#include <cstring>

#include "cuda/ptx/bulk_copy.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "softmax/cuda/rows.cuh"

namespace fastops::softmax::cuda {

inline constexpr int kStreamThreads = 512;
inline constexpr int kMaxCluster = 16;
inline constexpr int kChunkSlots = 4;  // a warp's slots that a bulk copy fills: 2 KB

template <typename Op>
inline constexpr int kStreamBlocksPerSm = Op::kFull || sizeof(typename Op::In) == 8 ? 1 : 2;

// What slots do not hold passes through registers, so by kernels that have an SM's to themselves.
template <typename Op>
inline constexpr int kBeyondUnroll = 4 / Op::kInputs;  // 32 KB in flight

// Starts the copy of vector v of a row into this thread's slot. Only whole vectors can be copied
// asynchronously; a partial one is put together here and now.
template <typename Op>
__device__ __forceinline__ void fetch(const typename Op::Row& r, int v, unsigned slot,
                                      unsigned input_stride) {
  const int first = v * Op::kV - r.shift;
  const bool whole = first >= 0 && first + Op::kV <= r.present;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    const unsigned address = slot + i * input_stride;
    if (whole && r.input_aligned(i)) {
      ptx::cp_async_128(address, r.input(i) + first);
    } else {
      Raw raw = fastops::cuda::raw_of(r.absent(i), r.absent(i));
      if (first < r.present && first + Op::kV > 0)
        raw = fastops::cuda::load_partial(r.input(i), first, r.present, r.absent(i));
      ptx::st_shared_128(address, raw);
    }
  }
}

// Of the vectors [from, from + count) of a row, those that lie in it whole.
struct WholeVectors {
  int begin, end;

  template <typename Row>
  __device__ __forceinline__ static WholeVectors of(const Row& r, int per, int from, int count) {
    return {max(from, r.shift > 0 ? 1 : 0), min(from + count, (r.present + r.shift) / per)};
  }
};

// The bytes that bulk_fetch copies asynchronously.
template <typename Op>
__device__ __forceinline__ unsigned bulk_bytes(const typename Op::Row& r, int from, int count) {
  const auto whole = WholeVectors::of(r, Op::kV, from, count);
  unsigned bytes = 0;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i)
    if (r.input_aligned(i)) bytes += max(0, whole.end - whole.begin) * sizeof(Raw);
  return bytes;
}

// A warp starts the copies of `count` neighbouring vectors of a row into its slots, one an input.
// What cannot be copied asynchronously is put together by the lane that reads it; true for a lane
// that did.
template <typename Op>
__device__ __forceinline__ bool bulk_fetch(const typename Op::Row& r, int from, int count,
                                           unsigned slots, unsigned input_stride, unsigned landed,
                                           int lane) {
  const auto whole = WholeVectors::of(r, Op::kV, from, count);
  bool stored = false;
#pragma unroll
  for (int i = 0; i < Op::kInputs; ++i) {
    const unsigned first_slot = slots + i * input_stride;
    const bool bulk = r.input_aligned(i) && whole.begin < whole.end;
    if (bulk && lane == 0)
      ptx::bulk_load(first_slot + (whole.begin - from) * sizeof(Raw),
                     r.input(i) + (whole.begin * Op::kV - r.shift),
                     (whole.end - whole.begin) * sizeof(Raw), landed);
    if (bulk && whole.end - whole.begin == count) continue;
#pragma unroll 1
    for (int k = lane; k < count; k += fastops::cuda::kWarp) {
      const int v = from + k, first = v * Op::kV - r.shift;
      if (v >= r.vectors() || (bulk && whole.begin <= v && v < whole.end)) continue;
      Raw raw = fastops::cuda::raw_of(r.absent(i), r.absent(i));
      if (first < r.present && first + Op::kV > 0)
        raw = fastops::cuda::load_partial(r.input(i), first, r.present, r.absent(i));
      ptx::st_shared_128(first_slot + k * sizeof(Raw), raw);
      stored = true;
    }
  }
  return stored;
}

// The reduction over the blocks of a cluster: each writes its statistic into every block's shared
// memory. `phase` alternates between calls, so that one cluster barrier a call is enough: a block
// two calls ahead has seen every peer past this one.
template <typename Op>
__device__ __forceinline__ typename Op::Stat cluster_reduce(typename Op::Stat stat,
                                                            typename Op::Stat (*peers)[kMaxCluster],
                                                            int phase, unsigned rank, int size) {
  static_assert(sizeof(typename Op::Stat) % 8 == 0, "sent as words of 8 bytes");
  const int lane = threadIdx.x % fastops::cuda::kWarp;
  if (static_cast<int>(threadIdx.x) < size) {
    const unsigned target = ptx::cluster_map(ptx::smem_addr(&peers[phase][rank]), threadIdx.x);
    uint2 words[sizeof(stat) / 8];
    memcpy(words, &stat, sizeof(stat));
#pragma unroll
    for (unsigned i = 0; i < sizeof(stat) / 8; ++i) ptx::st_cluster_64(target + 8 * i, words[i]);
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  stat = lane < size ? peers[phase][lane] : Op::identity();
  return Op::warp_reduce(stat, fastops::cuda::kWarp);
}

// A thread reads only slots that it filled itself, so shared memory needs no barrier: as soon as a
// vector of this row is written out, its slot takes the same vector of the next row.
//
//   holds     slots * 512 vectors of 16 bytes a row, input and block, in shared memory
//   bytes     each operand moved once; what slots do not hold (kCluster) read once more
//   barriers  one a row, and one of the cluster
//   in flight up to the whole of shared memory
//   kCluster  a warp owns `slots * 32` neighbouring vectors; as soon as it has written some out, a
//             bulk copy of 2 KB refills them; an mbarrier a warp. What the cluster's slots do not
//             hold goes straight into registers, the first time while bulk copies are on their way
//   registers 64 where two blocks share an SM; fp64 and full rows need more, and have it to itself
template <typename Op, bool kCluster>
__global__ __launch_bounds__(kStreamThreads,
                             kStreamBlocksPerSm<Op>) void stream_kernel(const __grid_constant__
                                                                        typename Op::Params p,
                                                                        int slots) {
  FASTOPS_DYNAMIC_SHARED(shared);
  __shared__ typename Op::Stat partials[2][fastops::cuda::kWarp];
  alignas(8) __shared__ typename Op::Stat peers[2][kMaxCluster];  // for st_cluster_64

  const int thread = threadIdx.x;
  const int lane = thread % fastops::cuda::kWarp, warp = thread / fastops::cuda::kWarp;
  const unsigned rank = kCluster ? ptx::cluster_rank() : 0;
  const int cluster = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
  const int64_t step = gridDim.x / cluster;
  // Neighbours in memory: the vectors of the block, or (kCluster) those of a warp.
  constexpr int kNeighbours = kCluster ? fastops::cuda::kWarp : kStreamThreads;
  constexpr unsigned kSlotStep = kNeighbours * sizeof(Raw);
  const int warp_first = kCluster ? warp * slots * kNeighbours : 0;
  const int part = static_cast<int>(rank) * slots * kStreamThreads + warp_first;
  const int first_vector = part + thread % kNeighbours;
  const int n = static_cast<int>(p.shape.n);
  const unsigned input_stride = slots * kStreamThreads * sizeof(Raw);
  const unsigned part_slots = ptx::smem_addr(shared) + warp_first * sizeof(Raw);
  const unsigned own_slots = part_slots + thread % kNeighbours * sizeof(Raw);

  [[maybe_unused]] unsigned landed = 0, parity = 0;
  if constexpr (kCluster) {  // no block may write to a peer that has not started
    __shared__ uint64_t barriers[kStreamThreads / fastops::cuda::kWarp];
    landed = ptx::smem_addr(&barriers[warp]);
    if (lane == 0) {
      ptx::mbarrier_init(landed, 1);
      ptx::fence_mbarrier_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }

  int64_t at = blockIdx.x / cluster;
  if (at >= p.shape.rows) return;  // the same for every block of a cluster
  typename Op::Row row = Op::locate(p, at, 0, n);
  [[maybe_unused]] bool stored = false;  // slots of this row by ordinary stores
  if constexpr (kCluster) {
    if (lane == 0) {
      ptx::mbarrier_arrive_expect(landed, bulk_bytes<Op>(row, part, slots * kNeighbours));
    }
    stored = bulk_fetch<Op>(row, part, slots * kNeighbours, part_slots, input_stride, landed, lane);
  } else {
#pragma unroll 1
    for (int k = 0; k < slots; ++k) {
      const int v = first_vector + k * kNeighbours;
      if (v < row.vectors()) fetch<Op>(row, v, own_slots + k * kSlotStep, input_stride);
    }
    ptx::cp_async_commit();
  }

  const auto read = [&](int k) {
    typename Op::Input input;
#pragma unroll
    for (int i = 0; i < Op::kInputs; ++i)
      input.raw[i] = ptx::ld_shared_128(own_slots + k * kSlotStep + i * input_stride);
    return input;
  };

  // The first of this thread's vectors that no slot holds, and to the next one.
  constexpr bool kBeyond = kCluster && kStreamBlocksPerSm<Op> == 1;
  [[maybe_unused]] const int beyond_step = cluster * kStreamThreads;
  [[maybe_unused]] const int beyond =
      beyond_step * slots + static_cast<int>(rank) * kStreamThreads + thread;

  int phase = 0;
  while (true) {
    typename Op::Stat stat = Op::identity();
    if constexpr (kBeyond)
      for_each_vector<Op, kBeyondUnroll<Op>>(
          row, beyond, beyond_step,
          [&](int, const typename Op::Held& held) { Op::accumulate(stat, held); });
    if constexpr (kCluster) {
      ptx::mbarrier_wait(landed, parity);
      parity ^= 1;
    } else {
      ptx::cp_async_wait<0>();
    }
#pragma unroll 2
    for (int k = 0; k < slots; ++k) {
      const int v = first_vector + k * kNeighbours;
      if (v >= row.vectors()) break;
      Op::accumulate(stat, Op::hold(row, v, read(k)));
    }
    stat = fastops::cuda::block_reduce<Op>(stat, partials, phase);
    if constexpr (kCluster)
      if (cluster > 1) stat = cluster_reduce<Op>(stat, peers, phase, rank, cluster);
    const typename Op::Final final = Op::finish(p, at, stat);
    if (thread == 0 && rank == 0) Op::write_row(p, at, stat);

    const int64_t next = at + step;
    const bool more = next < p.shape.rows;
    typename Op::Row next_row = row;
    if (more) next_row = Op::locate(p, next, 0, n);
    if constexpr (kCluster) {
      if (more && lane == 0) {
        ptx::mbarrier_arrive_expect(landed, bulk_bytes<Op>(next_row, part, slots * kNeighbours));
      }
      bool stores = false;
#pragma unroll 1
      for (int k0 = 0; k0 < slots; k0 += kChunkSlots) {
        const int here = min(kChunkSlots, slots - k0);
#pragma unroll 1
        for (int k = k0; k < k0 + here; ++k) {
          const int v = first_vector + k * kNeighbours;
          if (v < row.vectors()) Op::write(row, v, Op::hold(row, v, read(k)), final);
        }
        if (!more) continue;
        if (stored) {
          ptx::fence_proxy_async();
        }
        __syncwarp();  // every lane has read the chunk
        stores |= bulk_fetch<Op>(next_row, part + k0 * kNeighbours, here * kNeighbours,
                                 part_slots + k0 * kSlotStep, input_stride, landed, lane);
      }
      stored = stores;
      if constexpr (kBeyond)
        for_each_vector<Op, kBeyondUnroll<Op>>(
            row, beyond, beyond_step,
            [&](int v, const typename Op::Held& held) { Op::write(row, v, held, final); });
    } else {
#pragma unroll 1
      for (int k = 0; k < slots; ++k) {
        const int v = first_vector + k * kNeighbours;
        if (v < row.vectors()) Op::write(row, v, Op::hold(row, v, read(k)), final);
        if (more && v < next_row.vectors())
          fetch<Op>(next_row, v, own_slots + k * kSlotStep, input_stride);
      }
      ptx::cp_async_commit();
    }
    if (!more) break;
    at = next;
    row = next_row;
    phase ^= 1;
  }
}

}  // namespace fastops::softmax::cuda
