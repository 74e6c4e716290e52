// Host bodies of csrc/cuda/ptx/bulk_copy.cuh (csrc/simt/async.cpp). A copy lands when nothing else
// in the cluster can go on (late) or at once (early).
#pragma once

#include "simt/ptx/mbarrier.h"

namespace simt {

// ranks: 0 for no multicast.
SIMT_CALL void bulk_load(unsigned shared, const void* global, unsigned bytes, unsigned barrier,
                         unsigned ranks);
SIMT_CALL void bulk_to_cluster(unsigned mapped, unsigned shared, unsigned bytes, unsigned barrier);
SIMT_CALL void store_async(unsigned mapped, uint2 value, unsigned barrier);
SIMT_CALL void bulk_store(void* global, unsigned shared, unsigned bytes);
SIMT_CALL void bulk_commit();
SIMT_CALL void bulk_wait(int pending_groups, bool read);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void fence_proxy_async() { simt::fence_proxy(); }
SIMT_INLINE void bulk_load(unsigned shared, const void* global, unsigned bytes, unsigned barrier) {
  simt::bulk_load(shared, global, bytes, barrier, 0);
}
SIMT_INLINE void bulk_load_multicast(unsigned shared, const void* global, unsigned bytes,
                                     unsigned barrier, unsigned short ranks) {
  simt::bulk_load(shared, global, bytes, barrier, ranks);
}
SIMT_INLINE void bulk_copy_to_cluster(unsigned mapped, unsigned shared, unsigned bytes,
                                      unsigned mapped_barrier) {
  simt::bulk_to_cluster(mapped, shared, bytes, mapped_barrier);
}
SIMT_INLINE void st_async_64(unsigned mapped, uint2 v, unsigned mapped_barrier) {
  simt::store_async(mapped, v, mapped_barrier);
}
SIMT_INLINE void bulk_store(void* global, unsigned shared, unsigned bytes) {
  simt::bulk_store(global, shared, bytes);
}
SIMT_INLINE void bulk_commit() { simt::bulk_commit(); }
template <int kPending>
SIMT_INLINE void bulk_wait() {
  simt::bulk_wait(kPending, false);
}
template <int kPending>
SIMT_INLINE void bulk_wait_read() {
  simt::bulk_wait(kPending, true);
}

}  // namespace fastops::ptx
