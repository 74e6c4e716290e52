// Host bodies of csrc/cuda/ptx/barrier.cuh.
#pragma once

#include "simt/threads.h"

namespace simt {

SIMT_CALL void named_barrier(int id, int threads, bool wait);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void named_barrier_sync(int id, int threads) { simt::named_barrier(id, threads, true); }
SIMT_INLINE void named_barrier_arrive(int id, int threads) {
  simt::named_barrier(id, threads, false);
}

}  // namespace fastops::ptx
