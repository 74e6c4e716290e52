// Small kernels for tests/simt/planted.cu: good ones, and ones with a planted bug.
#pragma once

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/memory.cuh"
#include "planted.h"

namespace {

using namespace fastops::ptx;

using planted::kThreads;
constexpr unsigned kFull = 0xffffffffu;

// ---- Good ------------------------------------------------------------------------------------

__global__ void block_sum(const float* x, float* out, int n) {
  __shared__ float partial[2];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = i < n ? x[i] : 0.0f;
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kFull, sum, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0] + partial[1];
}

__global__ void reverse_in_warp(const float* x, float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  auto* row = reinterpret_cast<float*>(raw) + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  row[lane] = x[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = row[31 - lane];
}

__global__ void histogram(const int* x, int* out) {
  __shared__ int count[4];
  if (threadIdx.x < 4) count[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&count[x[threadIdx.x] % 4], 1);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(&out[threadIdx.x], count[threadIdx.x]);
}

__global__ void votes(const int* x, int* out) {
  const bool odd = x[threadIdx.x] % 2;
  const unsigned ballot = __ballot_sync(kFull, odd);
  const int total = __syncthreads_count(odd);
  const unsigned same = __match_any_sync(kFull, int(odd));
  const unsigned sum = __reduce_add_sync(kFull, unsigned(odd));
  const bool right = __popc(ballot) == int(sum) && same == (odd ? ballot : ~ballot) &&
                     __any_sync(kFull, odd) == (ballot != 0) &&
                     __all_sync(kFull, odd) == (ballot == kFull) && total >= int(sum);
  out[threadIdx.x] = right ? total : -1;
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  const int up = __shfl_up_sync(kFull, lane, 3, 8);
  const int down = __shfl_down_sync(kFull, lane, 3, 8);
  const int index = __shfl_sync(kFull, lane, 5, 16);
  const double wide = __shfl_xor_sync(kFull, double(lane), 1);
  out[lane] = ((up * 32 + down) * 32 + index) * 32 + int(wide);
}

__global__ void early_exit(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __syncthreads();
  out[i] = x[i];
}

__global__ void staged(const float* x, float* out) {
  __shared__ __align__(16) float tile[kThreads * 4];
  cp_async_128(smem_addr(&tile[threadIdx.x * 4]), x + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[i * kThreads + threadIdx.x] = tile[i * kThreads + threadIdx.x];
}

__global__ void cluster_sum(const float* x, float* out) {
  __shared__ __align__(8) uint2 from[8];
  float sum = x[blockIdx.x * kThreads + threadIdx.x];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kFull, sum, d);
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    for (unsigned rank = 0; rank < cluster_size(); ++rank)
      st_cluster_64(cluster_map(smem_addr(&from[cluster_rank()]), rank),
                    uint2{__float_as_uint(sum), 0u});
  }
  cluster_arrive();
  cluster_wait();
  float total = 0.0f;
  for (unsigned rank = 0; rank < cluster_size(); ++rank) total += __uint_as_float(from[rank].x);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

__global__ void only_sync(int rounds) {
  for (int i = 0; i < rounds; ++i) __syncwarp();
}

// ---- Planted ---------------------------------------------------------------------------------

__global__ void missing_barrier(const float* x, float* out) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// Right in value: each thread has read before the next round writes, but nothing says so.
__global__ void missing_second_barrier(const float* x, float* out) {
  __shared__ float tile[kThreads];
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += tile[kThreads - 1 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

__global__ void missing_syncwarp(const float* x, float* out) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[31 - threadIdx.x];
}

__global__ void shuffle_is_no_fence(const float* x, float* out) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  const float other = __shfl_xor_sync(kFull, x[threadIdx.x], 1);
  out[threadIdx.x] = tile[31 - threadIdx.x] + other;
}

__global__ void atomic_and_plain(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  out[threadIdx.x] = count;
}

__global__ void read_at(const float* x, float* out, int offset) {
  out[threadIdx.x] = x[int(threadIdx.x) + offset];
}

__global__ void write_at(const float* x, float* out, int offset) {
  out[int(threadIdx.x) + offset] = x[threadIdx.x];
}

__global__ void wide_read(const float* x, float* out, int offset) {
  out[threadIdx.x] = __uint_as_float(ld_global_128(x + offset).x);
}

__global__ void write_input(float* x, float* out) {
  out[threadIdx.x] = 1.0f;
  x[threadIdx.x] = 0.0f;
}

__global__ void read_output(float* out) {
  if (threadIdx.x > 0) out[threadIdx.x] = 1.0f;
  if (threadIdx.x == 1) out[2] += out[0];
}

__global__ void uninitialised_dynamic(float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  out[threadIdx.x] = reinterpret_cast<float*>(raw)[threadIdx.x];
}

__global__ void uninitialised_static(float* out) {
  __shared__ float tile[kThreads];
  if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void past_dynamic(float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  reinterpret_cast<float*>(raw)[threadIdx.x + 1] = 1.0f;
  out[threadIdx.x] = 1.0f;
}

__global__ void past_static(float* out, int shift) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x + shift] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x + shift];
}

__global__ void past_local(const int* x, float* out) {
  float values[4] = {};
  values[x[threadIdx.x]] = 1.0f;
  out[threadIdx.x] = values[0] + values[1] + values[2] + values[3];
}

__global__ void wide_shift(const int* x, int* out) { out[threadIdx.x] = 1 << x[threadIdx.x]; }

__global__ void foreign_local(float* out) {
  __shared__ const float* pointer;
  const volatile float mine = float(threadIdx.x);
  if (threadIdx.x == 0) pointer = const_cast<const float*>(&mine);
  __syncthreads();
  out[threadIdx.x] = *pointer;
  __syncthreads();
}

__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    out[threadIdx.x] = 2.0f;
    __syncthreads();
  }
}

__global__ void divergent_shuffle(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x % 2) {
    v = __shfl_xor_sync(kFull, v, 1);
  } else {
    v = 1.0f + __shfl_xor_sync(kFull, v, 1);
  }
  out[threadIdx.x] = v;
}

__global__ void shuffle_in_branch(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x % 2) v = __shfl_xor_sync(kFull, v, 1);
  __syncthreads();
  out[threadIdx.x] = v;
}

__global__ void mask_without_caller(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x7fffffffu, 1.0f, 0);
}

__global__ void shuffle_from_absent(float* out) {
  float v = float(threadIdx.x);
  if (threadIdx.x < 16) v = __shfl_sync(0xffffu, v, 16);
  out[threadIdx.x] = v;
}

__global__ void blocks_write_one(float* out) {
  if (threadIdx.x == 0) out[0] = float(blockIdx.x);
}

__global__ void block_reads_another(float* out) {
  if (threadIdx.x == 0) {
    out[blockIdx.x] = 1.0f;
    out[gridDim.x + blockIdx.x] = out[gridDim.x - 1 - blockIdx.x];
  }
}

__global__ void async_without_wait(const float* x, float* out) {
  __shared__ __align__(16) float tile[kThreads * 4];
  cp_async_128(smem_addr(&tile[threadIdx.x * 4]), x + threadIdx.x * 4);
  cp_async_commit();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void async_wait_one_short(const float* x, float* out) {
  __shared__ __align__(16) float tile[2][kThreads * 4];
  for (int i = 0; i < 2; ++i) {
    cp_async_128(smem_addr(&tile[i][threadIdx.x * 4]), x + threadIdx.x * 4);
    cp_async_commit();
  }
  cp_async_wait<1>();
  out[threadIdx.x] = tile[1][threadIdx.x * 4];
}

__global__ void async_without_barrier(const float* x, float* out) {
  __shared__ __align__(16) float tile[kThreads * 4];
  cp_async_128(smem_addr(&tile[threadIdx.x * 4]), x + threadIdx.x * 4);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void cluster_without_wait(float* out) {
  __shared__ __align__(8) uint2 slot;
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0)
    st_cluster_64(cluster_map(smem_addr(&slot), 1 - cluster_rank()), uint2{1u, 0u});
  cluster_arrive();
  out[blockIdx.x * kThreads + threadIdx.x] = float(slot.x);
  cluster_wait();
}

__global__ void cluster_exit_too_early(float* out) {
  __shared__ __align__(8) uint2 slot;
  cluster_arrive();
  cluster_wait();
  out[blockIdx.x * kThreads + threadIdx.x] = 1.0f;
  if (threadIdx.x == 0)
    st_cluster_64(cluster_map(smem_addr(&slot), 1 - cluster_rank()), uint2{1u, 0u});
}

__global__ void cluster_start_unknown(float* out) {
  __shared__ __align__(8) uint2 slot;
  if (threadIdx.x == 0)
    st_cluster_64(cluster_map(smem_addr(&slot), 1 - cluster_rank()), uint2{1u, 0u});
  cluster_arrive();
  cluster_wait();
  out[blockIdx.x * kThreads + threadIdx.x] = float(slot.x);
}

__global__ void cluster_wait_alone(float* out) {
  cluster_wait();
  out[blockIdx.x * kThreads + threadIdx.x] = 1.0f;
}

__global__ void cluster_deadlock(float* out) {
  out[blockIdx.x * kThreads + threadIdx.x] = 1.0f;
  if (cluster_rank() == 0) {
    cluster_arrive();
    cluster_wait();
  } else {
    if (threadIdx.x == 0) {
      cluster_arrive();
      cluster_wait();
    }
    __syncthreads();
    cluster_arrive();
    cluster_wait();
  }
}

}  // namespace
