// Host bodies of csrc/cuda/ptx/registers.cuh: the block's pool of 64 K registers, starting from as
// many a thread as its size allows: what ptxas took is not known here. Nothing is spilled here; a
// wait without end is a deadlock.
#pragma once

#include "simt/threads.h"

namespace simt {

SIMT_CALL void set_registers(int count, bool increase);

}  // namespace simt

namespace fastops::ptx {

template <int kCount>
SIMT_INLINE void setmaxnreg_inc() {
  static_assert(24 <= kCount && kCount <= 256 && kCount % 8 == 0);
  simt::set_registers(kCount, true);
}
template <int kCount>
SIMT_INLINE void setmaxnreg_dec() {
  static_assert(24 <= kCount && kCount <= 256 && kCount % 8 == 0);
  simt::set_registers(kCount, false);
}

SIMT_INLINE int opaque(int x) { return x; }

}  // namespace fastops::ptx
