// Approximate special functions of the MUFU unit.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/math.h"
#else

namespace fastops::ptx {

// ex2.approx.ftz.f32 (sm_50): 2^x to 2 ulp; subnormal results become 0; NaN stays NaN.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// rcp.approx.ftz.f32 (sm_50): 1/x to 1 ulp, without the subroutine call of an exact division.
__device__ __forceinline__ float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fastops::ptx

#endif
