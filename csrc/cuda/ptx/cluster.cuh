// Thread-block clusters and distributed shared memory (sm_90). Call only in code compiled for
// sm_90 and launched with a cluster.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/cluster.h"
#else

namespace fastops::ptx {

// %cluster_ctarank (sm_90): this block's rank in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// %cluster_nctarank (sm_90): blocks in this cluster.
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// mapa.shared::cluster.u32 (sm_90): the address in block `rank` of what lies at `address` here.
__device__ __forceinline__ unsigned cluster_map(unsigned address, unsigned rank) {
  unsigned mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// st.shared::cluster.v2.u32 (sm_90): 8 bytes into a block of the cluster. That block must be
// running and must not exit before the store is ordered by a cluster barrier.
__device__ __forceinline__ void st_cluster_64(unsigned mapped_address, uint2 v) {
  asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};"
               :
               : "r"(mapped_address), "r"(v.x), "r"(v.y)
               : "memory");
}

// barrier.cluster.arrive.release (sm_90): orders this thread's earlier writes, local and remote,
// before the matching wait of every thread of the cluster. Not .aligned: lanes come here from
// branches of one lane, and only a __syncwarp would promise that they come together.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" : : : "memory");
}

// barrier.cluster.wait.acquire (sm_90): each arrive needs exactly one wait.
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" : : : "memory");
}

}  // namespace fastops::ptx

#endif
