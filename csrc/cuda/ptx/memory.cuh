// Vector loads and stores. Addresses must be aligned to the size of the access: a misaligned one
// faults on the device and is reported by the host emulation.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/memory.h"
#else

namespace fastops::ptx {

// ld.global.L1::no_allocate.v4.u32 (sm_70). Streamed once: leaves L1 to data that is read again.
__device__ __forceinline__ uint4 ld_global_128(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

// ld.global.v2.u32 (sm_50).
__device__ __forceinline__ uint2 ld_global_64(const void* p) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}

// st.global.v4.u32 (sm_50).
__device__ __forceinline__ void st_global_128(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// st.global.v2.u32 (sm_50).
__device__ __forceinline__ void st_global_64(void* p, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(p), "r"(v.x), "r"(v.y) : "memory");
}

// The 32-bit shared-memory address of a generic pointer into shared memory (cvta.to.shared).
__device__ __forceinline__ unsigned smem_addr(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// ld.shared.v4.u32 (sm_50).
__device__ __forceinline__ uint4 ld_shared_128(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// st.shared.v4.u32 (sm_50).
__device__ __forceinline__ void st_shared_128(unsigned address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

}  // namespace fastops::ptx

#endif
