// Bulk copies (sm_90): one thread moves a contiguous piece; addresses and sizes are multiples of 16
// bytes. Loads complete on an mbarrier, as that many bytes; stores belong to groups of their
// thread.
//
// They are of the async proxy: shared memory that threads have written with ordinary stores is
// theirs to read, or to overwrite, only after fence_proxy_async by each writer and then a barrier.
// What a load brought needs no fence, only the mbarrier's wait.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/bulk_copy.h"
#else

namespace fastops::ptx {

// fence.proxy.async.shared::cta (sm_90): this thread's earlier accesses to shared memory come
// before asynchronous ones that are ordered after the fence.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// cp.async.bulk.shared::cluster.global.mbarrier (sm_90): to this block, or, both addresses mapped
// (cluster_map), to another.
__device__ __forceinline__ void bulk_load(unsigned shared, const void* global, unsigned bytes,
                                          unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(shared), "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same with .multicast::cluster (sm_90a): to the same offset in every block of `ranks` (a bit
// each), completing on the barrier at the same offset there.
__device__ __forceinline__ void bulk_load_multicast(unsigned shared, const void* global,
                                                    unsigned bytes, unsigned barrier,
                                                    unsigned short ranks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;"
      :
      : "r"(shared), "l"(global), "r"(bytes), "r"(barrier), "h"(ranks)
      : "memory");
}

// cp.async.bulk.shared::cluster.shared::cta.mbarrier (sm_90): to another block of the cluster; both
// of its addresses mapped.
__device__ __forceinline__ void bulk_copy_to_cluster(unsigned mapped, unsigned shared,
                                                     unsigned bytes, unsigned mapped_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];"
      :
      : "r"(mapped), "r"(shared), "r"(bytes), "r"(mapped_barrier)
      : "memory");
}

// st.async.shared::cluster.mbarrier.v2.b32 (sm_90): 8 bytes to a block of the cluster, completing
// on a barrier there; both addresses mapped.
__device__ __forceinline__ void st_async_64(unsigned mapped, uint2 v, unsigned mapped_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
               :
               : "r"(mapped), "r"(v.x), "r"(v.y), "r"(mapped_barrier)
               : "memory");
}

// cp.async.bulk.global.shared::cta.bulk_group (sm_90).
__device__ __forceinline__ void bulk_store(void* global, unsigned shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
               :
               : "l"(global), "r"(shared), "r"(bytes)
               : "memory");
}

// cp.async.bulk.commit_group (sm_90): closes the group of this thread's bulk stores since the last.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" : : : "memory");
}

// cp.async.bulk.wait_group (sm_90): until at most kPending groups have not written everything.
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" : : "n"(kPending) : "memory");
}

// cp.async.bulk.wait_group.read (sm_90): until at most kPending groups still read shared memory. A
// block must not exit before its stores have.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(kPending) : "memory");
}

}  // namespace fastops::ptx

#endif
