// The reverse of ldmatrix.cuh (sm_90): registers of a warp to rows of 8x8 matrices in shared
// memory. Call only in code compiled for sm_90.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/ldmatrix.h"
#else

namespace fastops::ptx {

// stmatrix.sync.aligned.m8n8.x1.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x1(unsigned row, unsigned r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};"
               :
               : "r"(row), "r"(r)
               : "memory");
}

// stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x1_trans(unsigned row, unsigned r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};"
               :
               : "r"(row), "r"(r)
               : "memory");
}

// stmatrix.sync.aligned.m8n8.x2.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x2(unsigned row, const unsigned (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};"
               :
               : "r"(row), "r"(r[0]), "r"(r[1])
               : "memory");
}

// stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x2_trans(unsigned row, const unsigned (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};"
               :
               : "r"(row), "r"(r[0]), "r"(r[1])
               : "memory");
}

// stmatrix.sync.aligned.m8n8.x4.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x4(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 (sm_90).
__device__ __forceinline__ void stmatrix_x4_trans(unsigned row, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

}  // namespace fastops::ptx

#endif
