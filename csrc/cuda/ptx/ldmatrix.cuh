// 8x8 matrices of 16-bit elements between shared memory and the registers of a warp. Matrix i of an
// instruction has its rows (16 bytes each, 16-byte aligned) at the addresses that lanes 8i to 8i+7
// give; the other lanes' addresses are ignored. Lane l holds, in register i, elements 2(l%4) and
// 2(l%4)+1 of row l/4; transposed, of column l/4. Every lane of the warp takes part. No memory is
// ordered: rows that other lanes wrote need __syncwarp or a barrier first.
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/ldmatrix.h"
#else

namespace fastops::ptx {

// ldmatrix.sync.aligned.m8n8.x1.shared.b16 (sm_75).
__device__ __forceinline__ unsigned ldmatrix_x1(unsigned row) {
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r)
               : "r"(row)
               : "memory");
  return r;
}

// ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 (sm_75).
__device__ __forceinline__ unsigned ldmatrix_x1_trans(unsigned row) {
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r)
               : "r"(row)
               : "memory");
  return r;
}

// ldmatrix.sync.aligned.m8n8.x2.shared.b16 (sm_75).
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

// ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 (sm_75).
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16 (sm_75).
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 (sm_75).
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

}  // namespace fastops::ptx

#endif
