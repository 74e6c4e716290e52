// Long rows held in shared memory while the next row is already on its way: persistent blocks, or
// persistent clusters of blocks that share a row (sm_90).
#pragma once

#include <cstring>

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "softmax/cuda/rows.cuh"

namespace fastops::softmax::cuda {

inline constexpr int kStreamThreads = 512;
inline constexpr int kMaxCluster = 16;

template <typename Op>
inline constexpr int kStreamBlocksPerSm = Op::kFull || sizeof(typename Op::In) == 8 ? 1 : 2;

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
//   bytes     each operand moved once
//   barriers  one a row, and one of the cluster
//   in flight up to the whole of shared memory
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
  const unsigned rank = kCluster ? ptx::cluster_rank() : 0;
  const int cluster = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
  const int64_t step = gridDim.x / cluster;
  const int first_vector = static_cast<int>(rank) * slots * kStreamThreads + thread;
  const int n = static_cast<int>(p.shape.n);
  const unsigned input_stride = slots * kStreamThreads * sizeof(Raw);
  const unsigned own_slots = ptx::smem_addr(shared) + thread * sizeof(Raw);
  constexpr unsigned kSlotStep = kStreamThreads * sizeof(Raw);

  if constexpr (kCluster) {  // no block may write to a peer that has not started
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }

  int64_t at = blockIdx.x / cluster;
  if (at >= p.shape.rows) return;  // the same for every block of a cluster
  typename Op::Row row = Op::locate(p, at, 0, n);
#pragma unroll 1
  for (int k = 0; k < slots; ++k) {
    const int v = first_vector + k * kStreamThreads;
    if (v < row.vectors()) fetch<Op>(row, v, own_slots + k * kSlotStep, input_stride);
  }
  ptx::cp_async_commit();

  int phase = 0;
  while (true) {
    ptx::cp_async_wait<0>();
    typename Op::Stat stat = Op::identity();
#pragma unroll 2
    for (int k = 0; k < slots; ++k) {
      const int v = first_vector + k * kStreamThreads;
      if (v >= row.vectors()) break;
      typename Op::Input input;
#pragma unroll
      for (int i = 0; i < Op::kInputs; ++i)
        input.raw[i] = ptx::ld_shared_128(own_slots + k * kSlotStep + i * input_stride);
      Op::accumulate(stat, Op::hold(row, v, input));
    }
    stat = fastops::cuda::block_reduce<Op>(stat, partials, phase);
    if constexpr (kCluster) stat = cluster_reduce<Op>(stat, peers, phase, rank, cluster);
    const typename Op::Final final = Op::finish(p, at, stat);
    if (thread == 0 && rank == 0) Op::write_row(p, at, stat);

    const int64_t next = at + step;
    const bool more = next < p.shape.rows;
    typename Op::Row next_row = row;
    if (more) next_row = Op::locate(p, next, 0, n);
#pragma unroll 1
    for (int k = 0; k < slots; ++k) {
      const int v = first_vector + k * kStreamThreads;
      const unsigned slot = own_slots + k * kSlotStep;
      if (v < row.vectors()) {
        typename Op::Input input;
#pragma unroll
        for (int i = 0; i < Op::kInputs; ++i)
          input.raw[i] = ptx::ld_shared_128(slot + i * input_stride);
        Op::write(row, v, Op::hold(row, v, input), final);
      }
      if (more && v < next_row.vectors()) fetch<Op>(next_row, v, slot, input_stride);
    }
    ptx::cp_async_commit();
    if (!more) break;
    at = next;
    row = next_row;
    phase ^= 1;
  }
}

}  // namespace fastops::softmax::cuda
