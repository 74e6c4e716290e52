// ldmatrix, mma, mma.sp, named barriers: good kernels, and ones with a planted bug.
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/mma_sparse.cuh"
#include "planted.h"

namespace {

using namespace fastops::ptx;
using namespace planted;

// Warp 0 fills for warp 1 and goes on; 2 rounds through two barriers.
__global__ void producer_consumer(const float* x, float* out) {
  __shared__ float tile[32];
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0) named_barrier_sync(2, 64);
      tile[lane] = x[round * 32 + lane];
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      out[round * 32 + lane] = tile[31 - lane];
      if (round == 0) named_barrier_arrive(2, 64);
    }
  }
}

// What warp 0 passes on through warp 1 reaches warp 2.
__global__ void barrier_chain(float* out) {
  __shared__ float tile[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    tile[lane] = float(lane);
    named_barrier_arrive(1, 64);
  } else if (warp == 1) {
    named_barrier_sync(1, 64);
    named_barrier_arrive(2, 64);
  } else {
    named_barrier_sync(2, 64);
    out[lane] = tile[31 - lane];
  }
}

__global__ void matrix_product(float* out, int swapped) {
  __shared__ __align__(16) __half tile[8 * 8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 64; i += 32) tile[i] = __float2half(float(i));
  __syncwarp();
  unsigned a[2] = {ldmatrix_x1(smem_addr(&tile[lane % 8 * 8])), 0u};
  const unsigned b = ldmatrix_x1_trans(smem_addr(&tile[lane % 8 * 8]));
  float d[4] = {};
  mma_m16n8k8<__half>(d, a, b);
  out[lane * 2] = d[swapped];
  out[lane * 2 + 1] = d[1 - swapped];
}

__global__ void ldmatrix_without_syncwarp(float* out) {
  __shared__ __align__(16) unsigned tile[32];
  tile[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = float(ldmatrix_x1(smem_addr(&tile[(7 - threadIdx.x % 8) * 4])));
}

__global__ void ldmatrix_misaligned(float* out) {
  __shared__ __align__(16) unsigned tile[64];
  tile[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = float(ldmatrix_x1(smem_addr(&tile[threadIdx.x % 8 * 4 + 1])));
}

__global__ void ldmatrix_past_end(float* out) {
  FASTOPS_DYNAMIC_SHARED(raw);
  auto* tile = reinterpret_cast<unsigned*>(raw);
  tile[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = float(ldmatrix_x1(smem_addr(raw) + (threadIdx.x % 8 + 1) * 16));
}

__global__ void ldmatrix_half_a_warp(float* out) {
  __shared__ __align__(16) unsigned tile[32];
  tile[threadIdx.x] = threadIdx.x;
  __syncwarp();
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = float(ldmatrix_x1(smem_addr(&tile[threadIdx.x % 8 * 4])));
}

__global__ void mma_in_branch(float* out) {
  const unsigned a[2] = {0u, 0u};
  float d[4] = {};
  if (threadIdx.x < 16) {
    mma_m16n8k8<__half>(d, a, 0u);
  } else {
    mma_m16n8k8<__half>(d, a, 1u);
  }
  out[threadIdx.x] = d[0];
}

__global__ void metadata_out_of_order(float* out) {
  const unsigned a[2] = {0u, 0u};
  float d[4] = {};
  mma_sp_m16n8k16<__half, 0>(d, a, 0u, 0u, threadIdx.x == 8 ? 0x44414444u : 0x44444444u);
  out[threadIdx.x] = d[0];
}

// The word is in lane 4g + 1, the instruction takes lane 4g.
__global__ void metadata_in_wrong_lane(float* out) {
  const unsigned a[2] = {0u, 0u};
  float d[4] = {};
  mma_sp_m16n8k16<__half, 0>(d, a, 0u, 0u, threadIdx.x % 4 == 1 ? 0x44444444u : 0u);
  out[threadIdx.x] = d[0];
}

__global__ void early_arrive(const float* x, float* out) {
  __shared__ float tile[32];
  if (threadIdx.x < 32) {
    named_barrier_arrive(1, 64);
    tile[threadIdx.x] = x[threadIdx.x];
  } else {
    named_barrier_sync(1, 64);
    out[threadIdx.x - 32] = tile[63 - threadIdx.x];
  }
}

// The producer refills without waiting for the consumer.
__global__ void refill_without_waiting(const float* x, float* out) {
  __shared__ float tile[32];
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x < 32) {
      tile[lane] = x[round * 32 + lane];
      named_barrier_arrive(1 + round, 64);
    } else {
      named_barrier_sync(1 + round, 64);
      out[round * 32 + lane] = tile[31 - lane];
    }
  }
}

__global__ void barrier_count_differs(float* out) {
  if (threadIdx.x < 32) named_barrier_arrive(1, 64);
  else named_barrier_sync(1, 96);
  out[threadIdx.x] = 1.0f;
}

__global__ void barrier_waits_for_more(float* out) {
  named_barrier_sync(1, 96);
  out[threadIdx.x] = 1.0f;
}

}  // namespace

std::vector<Case> planted::matrix_cases() {
  return {
      {"producer_consumer", "",
       [] {
         Buffers b(kThreads, kThreads);
         run(producer_consumer, 1, 64, 0, 1, b.x, b.out);
         require(b.out[0] == 31.0f && b.out[32] == 63.0f);
       }},
      {"barrier_chain", "",
       [] {
         Buffers b(1, 32);
         run(barrier_chain, 1, 96, 0, 1, b.out);
         require(b.out[0] == 31.0f);
       }},
      {"matrix_product", "",
       [] {
         Buffers b(1, 64);
         run(matrix_product, 1, 32, 0, 1, b.out, 0);
         // Row 1, column 2: of the matrix of 8r + c with itself.
         float sum = 0;
         for (int k = 0; k < 8; ++k) sum += float((8 + k) * (8 * k + 2));
         require(b.out[10] == sum);
       }},
      {"ldmatrix_without_syncwarp", "race",
       [] {
         Buffers b(1, kThreads);
         run(ldmatrix_without_syncwarp, 1, 32, 0, 1, b.out);
       }},
      {"ldmatrix_misaligned", "misaligned",
       [] {
         Buffers b(1, kThreads);
         run(ldmatrix_misaligned, 1, 32, 0, 1, b.out);
       }},
      {"ldmatrix_past_end", "out-of-bounds",
       [] {
         Buffers b(1, kThreads);
         run(ldmatrix_past_end, 1, 32, 128, 1, b.out);
       }},
      {"ldmatrix_half_a_warp", "divergent-collective",
       [] {
         Buffers b(1, kThreads);
         run(ldmatrix_half_a_warp, 1, 32, 0, 1, b.out);
       }},
      {"mma_in_branch", "divergent-collective",
       [] {
         Buffers b(1, kThreads);
         run(mma_in_branch, 1, 32, 0, 1, b.out);
       }},
      {"metadata_out_of_order", "sparse-metadata",
       [] {
         Buffers b(1, kThreads);
         run(metadata_out_of_order, 1, 32, 0, 1, b.out);
       }},
      {"metadata_in_wrong_lane", "sparse-metadata",
       [] {
         Buffers b(1, kThreads);
         run(metadata_in_wrong_lane, 1, 32, 0, 1, b.out);
       }},
      {"early_arrive", "race",
       [] {
         Buffers b(kThreads, kThreads);
         run(early_arrive, 1, 64, 0, 1, b.x, b.out);
       }},
      {"refill_without_waiting", "race",
       [] {
         Buffers b(kThreads, kThreads);
         run(refill_without_waiting, 1, 64, 0, 1, b.x, b.out);
       }},
      {"barrier_count_differs", "barrier-protocol",
       [] {
         Buffers b(1, kThreads);
         run(barrier_count_differs, 1, 64, 0, 1, b.out);
       }},
      {"barrier_waits_for_more", "deadlock",
       [] {
         Buffers b(1, kThreads);
         run(barrier_waits_for_more, 1, 64, 0, 1, b.out);
       }},
  };
}
