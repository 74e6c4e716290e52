// Named barriers of a block. Barrier 0 is __syncthreads, so `id` is 1 to 15; `threads` (a multiple
// of 32) counts everyone who meets there, those that only arrive included. Whole warps take part.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/barrier.h"
#else

namespace fastops::ptx {

// bar.sync (sm_70): waits for the others; orders the memory accesses of all who arrived before it.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// bar.arrive (sm_70): does not wait. Orders this warp's earlier accesses before what comes after
// the others' bar.sync, nothing the other way round.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

}  // namespace fastops::ptx

#endif
