// Tensor-core products with a 2:4 sparse a (tf32: 1:2), d += a b, fp32 accumulators. d and b are
// laid out as in mma.cuh, and so is a after compression: of every 4 columns (a quad) the 2 kept
// ones.
//
// Metadata: 4 bits a quad, the column of the first kept element in bits 1:0, that of the second in
// bits 3:2, the first below the second (.sp::ordered_metadata requires it). tf32: 4 bits a pair,
// 0b0100 keeps the first column, 0b1110 the second. A lane's word has quads 4q to 4q+3 of row g in
// its low half and of row g+8 in its high half, with g = lane / 4. Who holds it:
//   16-bit m16n8k16, tf32 m16n8k8:  lane 4g + kSelector (0 to 3) for the whole row
//   16-bit m16n8k32, tf32 m16n8k16: lanes 4g + 2 kSelector (0 or 1) and the next, half a row each
#pragma once

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/mma.h"
#else

#include <type_traits>

namespace fastops::ptx {

// mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32 (sm_80).
template <typename T, int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k16(float (&d)[4], const unsigned (&a)[2], unsigned b0,
                                                unsigned b1, unsigned metadata) {
  static_assert(0 <= kSelector && kSelector < 4);
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3}, %8, %9;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1), "r"(metadata), "n"(kSelector));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3}, %8, %9;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1), "r"(metadata), "n"(kSelector));
  }
}

// mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{f16,bf16}.{f16,bf16}.f32 (sm_80).
template <typename T, int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32(float (&d)[4], const unsigned (&a)[4],
                                                const unsigned (&b)[4], unsigned metadata) {
  static_assert(kSelector == 0 || kSelector == 1);
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(metadata), "n"(kSelector));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(metadata), "n"(kSelector));
  }
}

// mma.sp::ordered_metadata.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 (sm_80).
template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[2],
                                                    unsigned b0, unsigned b1, unsigned metadata) {
  static_assert(0 <= kSelector && kSelector < 4);
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3}, %8, %9;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0), "r"(b1), "r"(metadata), "n"(kSelector));
}

// mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 (sm_80).
template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k16_tf32(float (&d)[4], const unsigned (&a)[4],
                                                     const unsigned (&b)[4], unsigned metadata) {
  static_assert(kSelector == 0 || kSelector == 1);
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(metadata), "n"(kSelector));
}

}  // namespace fastops::ptx

#endif
