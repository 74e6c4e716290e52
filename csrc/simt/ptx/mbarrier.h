// Host bodies of csrc/cuda/ptx/mbarrier.cuh (csrc/simt/mbarrier.cpp). A wait parks its fiber.
#pragma once

#include "simt/threads.h"

namespace simt {

SIMT_CALL void mbarrier_init(unsigned barrier, unsigned count);
SIMT_CALL void mbarrier_invalidate(unsigned barrier);
SIMT_CALL void mbarrier_arrive(unsigned barrier, unsigned expected_bytes);
SIMT_CALL void mbarrier_expect(unsigned barrier, unsigned bytes);
SIMT_CALL void mbarrier_wait(unsigned barrier, unsigned parity);
SIMT_CALL void cp_async_arrive(unsigned barrier);
SIMT_CALL void fence_proxy();

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void mbarrier_init(unsigned barrier, unsigned count) {
  simt::mbarrier_init(barrier, count);
}
SIMT_INLINE void mbarrier_invalidate(unsigned barrier) { simt::mbarrier_invalidate(barrier); }
SIMT_INLINE void fence_mbarrier_init() { simt::fence_proxy(); }
SIMT_INLINE void mbarrier_arrive(unsigned barrier) { simt::mbarrier_arrive(barrier, 0); }
SIMT_INLINE void mbarrier_arrive_expect(unsigned barrier, unsigned bytes) {
  simt::mbarrier_arrive(barrier, bytes);
}
SIMT_INLINE void mbarrier_expect(unsigned barrier, unsigned bytes) {
  simt::mbarrier_expect(barrier, bytes);
}
SIMT_INLINE void mbarrier_arrive_cluster(unsigned mapped_barrier) {
  simt::mbarrier_arrive(mapped_barrier, 0);
}
SIMT_INLINE void mbarrier_arrive_cluster_read(unsigned mapped_barrier) {
  simt::mbarrier_arrive(mapped_barrier, 0);
}
SIMT_INLINE void cp_async_mbarrier_arrive(unsigned barrier) { simt::cp_async_arrive(barrier); }
SIMT_INLINE void mbarrier_wait(unsigned barrier, unsigned parity) {
  simt::mbarrier_wait(barrier, parity);
}
SIMT_INLINE void mbarrier_wait_cluster(unsigned barrier, unsigned parity) {
  simt::mbarrier_wait(barrier, parity);
}

}  // namespace fastops::ptx
