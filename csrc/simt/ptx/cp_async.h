// Host bodies of csrc/cuda/ptx/cp_async.cuh. From issue to wait the destination is pending: any
// access to it is reported. The bytes move at the wait (late) or at the issue (early).
#pragma once

#include "simt/ptx/memory.h"

namespace simt {

SIMT_CALL void cp_async(void* shared, const void* global, int bytes);
SIMT_CALL void cp_async_commit();
SIMT_CALL void cp_async_wait(int pending_groups);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void cp_async_128(unsigned shared_address, const void* global) {
  simt::cp_async(simt::from_shared_address(shared_address), global, 16);
}
SIMT_INLINE void cp_async_commit() { simt::cp_async_commit(); }
template <int kPending>
SIMT_INLINE void cp_async_wait() {
  simt::cp_async_wait(kPending);
}

}  // namespace fastops::ptx
