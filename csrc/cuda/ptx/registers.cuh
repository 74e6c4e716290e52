// Moving registers between the warpgroups of a block (sm_90a), and keeping the compiler from
// filling them. kCount: 24 to 256, a multiple of 8; every warp of the warpgroup executes it. The
// kernel needs a launch bound for ptxas to know what it starts with.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/registers.h"
#else

namespace fastops::ptx {

// setmaxnreg.inc.sync.aligned.u32 (sm_90a): waits until other warps have given up enough.
template <int kCount>
__device__ __forceinline__ void setmaxnreg_inc() {
  static_assert(24 <= kCount && kCount <= 256 && kCount % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kCount));
}

// setmaxnreg.dec.sync.aligned.u32 (sm_90a).
template <int kCount>
__device__ __forceinline__ void setmaxnreg_dec() {
  static_assert(24 <= kCount && kCount <= 256 && kCount % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kCount));
}

// No instruction: x, of which the compiler no longer knows where it comes from. What is computed
// from it in a loop is then computed there, and holds no registers across it.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace fastops::ptx

#endif
