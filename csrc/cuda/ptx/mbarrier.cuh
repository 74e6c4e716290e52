// Barriers in shared memory (sm_90): 8 bytes, 8-aligned, that a phase of arrivals and of bytes
// copied asynchronously completes. A phase ends when `count` arrivals have come and as many bytes
// as were expected; the next one starts at once. The phases' parities are 0, 1, 0, ...
//
// After initialising: fence_mbarrier_init by the thread that did it, then a barrier of the block
// (of the cluster, where other blocks arrive), before anyone uses them.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/mbarrier.h"
#else

namespace fastops::ptx {

// mbarrier.init (sm_90 form).
__device__ __forceinline__ void mbarrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(count) : "memory");
}

// mbarrier.inval: the 8 bytes are plain memory again.
__device__ __forceinline__ void mbarrier_invalidate(unsigned barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" : : "r"(barrier) : "memory");
}

// fence.mbarrier_init.release.cluster (sm_90): makes this thread's initialisations known to
// asynchronous copies and to the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

// mbarrier.arrive, release at block scope.
__device__ __forceinline__ void mbarrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}

// mbarrier.arrive.expect_tx (sm_90): first `bytes` more are expected in this phase, then one
// arrival.
__device__ __forceinline__ void mbarrier_arrive_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(barrier), "r"(bytes)
               : "memory");
}

// mbarrier.expect_tx (sm_90): the same without arriving.
__device__ __forceinline__ void mbarrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
               :
               : "r"(barrier), "r"(bytes)
               : "memory");
}

// mbarrier.arrive at a barrier of another block (cluster_map, sm_90), release at cluster scope.
__device__ __forceinline__ void mbarrier_arrive_cluster(unsigned mapped_barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];"
               :
               : "r"(mapped_barrier)
               : "memory");
}

// The same, release at block scope: says that this thread has read, where the other block needs to
// see nothing that it wrote. At cluster scope each arrival waits for all of its stores.
__device__ __forceinline__ void mbarrier_arrive_cluster_read(unsigned mapped_barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" : : "r"(mapped_barrier) : "memory");
}

// cp.async.mbarrier.arrive.noinc (sm_80): one of the expected arrivals, when every cp.async this
// thread has issued so far has landed.
__device__ __forceinline__ void cp_async_mbarrier_arrive(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" : : "r"(barrier) : "memory");
}

// mbarrier.try_wait.parity (sm_90), acquire at block scope: waits a while for the phase of that
// parity to be over, and says whether it is. Parity 1 of a fresh barrier counts as over.
__device__ __forceinline__ bool mbarrier_try_wait(unsigned barrier, unsigned parity) {
  unsigned over;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// The same, acquire at cluster scope, which empties L1.
__device__ __forceinline__ bool mbarrier_try_wait_cluster(unsigned barrier, unsigned parity) {
  unsigned over;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// For what this block's threads wrote, and copies bring, whoever started them.
__device__ __forceinline__ void mbarrier_wait(unsigned barrier, unsigned parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// Also for what threads of other blocks wrote before they arrived with mbarrier_arrive_cluster.
__device__ __forceinline__ void mbarrier_wait_cluster(unsigned barrier, unsigned parity) {
  while (!mbarrier_try_wait_cluster(barrier, parity)) {
  }
}

}  // namespace fastops::ptx

#endif
