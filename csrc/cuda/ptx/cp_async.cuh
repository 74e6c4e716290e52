// Asynchronous copies from global to shared memory (sm_80). The bytes land at an unknown moment
// between the issue and the wait of the thread that issued them; other threads see them only after
// that wait and a barrier.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/cp_async.h"
#else

namespace fastops::ptx {

// cp.async.cg.shared.global 16 bytes (sm_80), past L1. Both addresses 16-byte aligned.
__device__ __forceinline__ void cp_async_128(unsigned shared_address, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(shared_address), "l"(global)
               : "memory");
}

// cp.async.commit_group (sm_80): closes the group of every copy issued since the last one.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" : : : "memory");
}

// cp.async.wait_group (sm_80): waits until at most kPending of this thread's groups are in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

}  // namespace fastops::ptx

#endif
