// Tensor-core products of a warpgroup (sm_90a): four warps in a row, m64nNkK, d += a b (or d = a
// b), fp32 accumulators, asynchronous. b, and in wgmma_ss a, are read from shared memory through
// descriptors (wgmma_descriptor.cuh); in wgmma_rs a is in registers. K is 16 for 16-bit types, 8
// for tf32, and twice that with a sparse a.
//
//   d: warp w of the four has rows 16w to 16w+15; d[4j] to d[4j+3] are columns 8j to 8j+7 of them,
//   laid
//      out as the accumulator of mma.cuh.
//   a in registers: those rows as the a of mma.cuh (mma_sparse.cuh, and so is the metadata).
//
// Order: wgmma_fence; one or more products; wgmma_commit; wgmma_wait. From the product to the wait
// d may not be touched, the registers of a and what the descriptors cover not be written.
// wgmma_fence comes before the first product, and again after d or a's registers have been written.
// Shared memory that threads have written with ordinary stores needs fence_proxy_async
// (bulk_copy.cuh).
#pragma once

#include "cuda/ptx/wgmma_descriptor.cuh"
#include "cuda/runtime.h"

namespace fastops::ptx {
struct Tf32 {};  // as T: fp32 words of which the tensor core takes the tf32 part
}  // namespace fastops::ptx

#ifdef SIMT_HOST
#include "simt/ptx/wgmma.h"
#else

#include <type_traits>

namespace fastops::ptx {

// wgmma.fence.sync.aligned (sm_90a): orders this warp's registers, and shared memory, before
// products.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

// wgmma.commit_group.sync.aligned (sm_90a): closes the group of the products issued since the last.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

// wgmma.wait_group.sync.aligned (sm_90a): until at most kPending groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of d across a fence or a wait; no instruction.
template <int kCount>
__device__ __forceinline__ void wgmma_hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i]) : : "memory");
}

namespace wgmma_asm {

// The operands of m64n8<m>: the text of its registers, and d as constraints.
#define WGMMA_R1 "%0, %1, %2, %3"
#define WGMMA_D1 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define WGMMA_R2 WGMMA_R1 ", %4, %5, %6, %7"
#define WGMMA_D2 WGMMA_D1, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define WGMMA_R3 WGMMA_R2 ", %8, %9, %10, %11"
#define WGMMA_D3 WGMMA_D2, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define WGMMA_R4 WGMMA_R3 ", %12, %13, %14, %15"
#define WGMMA_D4 WGMMA_D3, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define WGMMA_R5 WGMMA_R4 ", %16, %17, %18, %19"
#define WGMMA_D5 WGMMA_D4, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define WGMMA_R6 WGMMA_R5 ", %20, %21, %22, %23"
#define WGMMA_D6 WGMMA_D5, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define WGMMA_R7 WGMMA_R6 ", %24, %25, %26, %27"
#define WGMMA_D7 WGMMA_D6, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define WGMMA_R8 WGMMA_R7 ", %28, %29, %30, %31"
#define WGMMA_D8 WGMMA_D7, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define WGMMA_R9 WGMMA_R8 ", %32, %33, %34, %35"
#define WGMMA_D9 WGMMA_D8, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define WGMMA_R10 WGMMA_R9 ", %36, %37, %38, %39"
#define WGMMA_D10 WGMMA_D9, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define WGMMA_R11 WGMMA_R10 ", %40, %41, %42, %43"
#define WGMMA_D11 WGMMA_D10, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define WGMMA_R12 WGMMA_R11 ", %44, %45, %46, %47"
#define WGMMA_D12 WGMMA_D11, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define WGMMA_R13 WGMMA_R12 ", %48, %49, %50, %51"
#define WGMMA_D13 WGMMA_D12, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define WGMMA_R14 WGMMA_R13 ", %52, %53, %54, %55"
#define WGMMA_D14 WGMMA_D13, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define WGMMA_R15 WGMMA_R14 ", %56, %57, %58, %59"
#define WGMMA_D15 WGMMA_D14, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define WGMMA_R16 WGMMA_R15 ", %60, %61, %62, %63"
#define WGMMA_D16 WGMMA_D15, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define WGMMA_R17 WGMMA_R16 ", %64, %65, %66, %67"
#define WGMMA_D17 WGMMA_D16, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define WGMMA_R18 WGMMA_R17 ", %68, %69, %70, %71"
#define WGMMA_D18 WGMMA_D17, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define WGMMA_R19 WGMMA_R18 ", %72, %73, %74, %75"
#define WGMMA_D19 WGMMA_D18, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define WGMMA_R20 WGMMA_R19 ", %76, %77, %78, %79"
#define WGMMA_D20 WGMMA_D19, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define WGMMA_R21 WGMMA_R20 ", %80, %81, %82, %83"
#define WGMMA_D21 WGMMA_D20, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define WGMMA_R22 WGMMA_R21 ", %84, %85, %86, %87"
#define WGMMA_D22 WGMMA_D21, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define WGMMA_R23 WGMMA_R22 ", %88, %89, %90, %91"
#define WGMMA_D23 WGMMA_D22, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define WGMMA_R24 WGMMA_R23 ", %92, %93, %94, %95"
#define WGMMA_D24 WGMMA_D23, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define WGMMA_R25 WGMMA_R24 ", %96, %97, %98, %99"
#define WGMMA_D25 WGMMA_D24, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define WGMMA_R26 WGMMA_R25 ", %100, %101, %102, %103"
#define WGMMA_D26 WGMMA_D25, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define WGMMA_R27 WGMMA_R26 ", %104, %105, %106, %107"
#define WGMMA_D27 WGMMA_D26, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define WGMMA_R28 WGMMA_R27 ", %108, %109, %110, %111"
#define WGMMA_D28 WGMMA_D27, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define WGMMA_R29 WGMMA_R28 ", %112, %113, %114, %115"
#define WGMMA_D29 WGMMA_D28, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define WGMMA_R30 WGMMA_R29 ", %116, %117, %118, %119"
#define WGMMA_D30 WGMMA_D29, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define WGMMA_R31 WGMMA_R30 ", %120, %121, %122, %123"
#define WGMMA_D31 WGMMA_D30, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define WGMMA_R32 WGMMA_R31 ", %124, %125, %126, %127"
#define WGMMA_D32 WGMMA_D31, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

template <int kN>
struct Products;

// One shape: i0 to i8 are the numbers of the operands after d.
#define WGMMA_SHAPE(n, m, i0, i1, i2, i3, i4, i5, i6, i7, i8)                                      \
  template <>                                                                                      \
  struct Products<n> {                                                                             \
    template <typename T, int kTransposeA, int kTransposeB>                                        \
    static __device__ __forceinline__ void ss(float (&d)[n / 2], uint64_t a, uint64_t b,           \
                                              int add) {                                           \
      if constexpr (std::is_same_v<T, Tf32>)                                                       \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {" WGMMA_R##m        \
                     "}, "                                                                         \
                     "%" #i0 ", %" #i1 ", p, 1, 1;\n}"                                             \
                     : WGMMA_D##m                                                                  \
                     : "l"(a), "l"(b), "r"(add));                                                  \
      else if constexpr (std::is_same_v<T, __half>)                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" WGMMA_R##m         \
                     "}, "                                                                         \
                     "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                         \
                     : WGMMA_D##m                                                                  \
                     : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));              \
      else                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WGMMA_R##m       \
                     "}, "                                                                         \
                     "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                         \
                     : WGMMA_D##m                                                                  \
                     : "l"(a), "l"(b), "r"(add), "n"(kTransposeA), "n"(kTransposeB));              \
    }                                                                                              \
    template <typename T, int kTransposeB>                                                         \
    static __device__ __forceinline__ void rs(float (&d)[n / 2], const unsigned (&a)[4],           \
                                              uint64_t b, int add) {                               \
      if constexpr (std::is_same_v<T, Tf32>)                                                       \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {" WGMMA_R##m        \
                     "}, "                                                                         \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1;\n}"             \
                     : WGMMA_D##m                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
      else if constexpr (std::is_same_v<T, __half>)                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" WGMMA_R##m         \
                     "}, "                                                                         \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}"   \
                     : WGMMA_D##m                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),               \
                       "n"(kTransposeB));                                                          \
      else                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WGMMA_R##m       \
                     "}, "                                                                         \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}"   \
                     : WGMMA_D##m                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),               \
                       "n"(kTransposeB));                                                          \
    }                                                                                              \
    template <typename T, int kSelector, int kTransposeB>                                          \
    static __device__ __forceinline__ void sp_ss(float (&d)[n / 2], uint64_t a, uint64_t b,        \
                                                 unsigned metadata, int add) {                     \
      if constexpr (std::is_same_v<T, __half>)                                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i4                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #n "k32.f32.f16.f16 {" WGMMA_R##m      \
                     "}, "                                                                         \
                     "%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 ", p, 1, 1, 0, %" #i5 ";\n}"            \
                     : WGMMA_D##m                                                                  \
                     : "l"(a), "l"(b), "r"(metadata), "n"(kSelector), "r"(add), "n"(kTransposeB)); \
      else                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i4                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #n "k32.f32.bf16.bf16 {" WGMMA_R##m    \
                     "}, "                                                                         \
                     "%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 ", p, 1, 1, 0, %" #i5 ";\n}"            \
                     : WGMMA_D##m                                                                  \
                     : "l"(a), "l"(b), "r"(metadata), "n"(kSelector), "r"(add), "n"(kTransposeB)); \
    }                                                                                              \
    template <typename T, int kSelector, int kTransposeB>                                          \
    static __device__ __forceinline__ void sp_rs(float (&d)[n / 2], const unsigned (&a)[4],        \
                                                 uint64_t b, unsigned metadata, int add) {         \
      if constexpr (std::is_same_v<T, __half>)                                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i7                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #n "k32.f32.f16.f16 {" WGMMA_R##m      \
                     "}, "                                                                         \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", %" #i5 ", %" #i6         \
                     ", p, 1, 1, %" #i8 ";\n}"                                                     \
                     : WGMMA_D##m                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata),          \
                       "n"(kSelector), "r"(add), "n"(kTransposeB));                                \
      else                                                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i7                                      \
                     ", 0;\n"                                                                      \
                     "wgmma.mma_async.sp.sync.aligned.m64n" #n "k32.f32.bf16.bf16 {" WGMMA_R##m    \
                     "}, "                                                                         \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", %" #i5 ", %" #i6         \
                     ", p, 1, 1, %" #i8 ";\n}"                                                     \
                     : WGMMA_D##m                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata),          \
                       "n"(kSelector), "r"(add), "n"(kTransposeB));                                \
    }                                                                                              \
  };

WGMMA_SHAPE(8, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12)
WGMMA_SHAPE(16, 2, 8, 9, 10, 11, 12, 13, 14, 15, 16)
WGMMA_SHAPE(24, 3, 12, 13, 14, 15, 16, 17, 18, 19, 20)
WGMMA_SHAPE(32, 4, 16, 17, 18, 19, 20, 21, 22, 23, 24)
WGMMA_SHAPE(40, 5, 20, 21, 22, 23, 24, 25, 26, 27, 28)
WGMMA_SHAPE(48, 6, 24, 25, 26, 27, 28, 29, 30, 31, 32)
WGMMA_SHAPE(56, 7, 28, 29, 30, 31, 32, 33, 34, 35, 36)
WGMMA_SHAPE(64, 8, 32, 33, 34, 35, 36, 37, 38, 39, 40)
WGMMA_SHAPE(72, 9, 36, 37, 38, 39, 40, 41, 42, 43, 44)
WGMMA_SHAPE(80, 10, 40, 41, 42, 43, 44, 45, 46, 47, 48)
WGMMA_SHAPE(88, 11, 44, 45, 46, 47, 48, 49, 50, 51, 52)
WGMMA_SHAPE(96, 12, 48, 49, 50, 51, 52, 53, 54, 55, 56)
WGMMA_SHAPE(104, 13, 52, 53, 54, 55, 56, 57, 58, 59, 60)
WGMMA_SHAPE(112, 14, 56, 57, 58, 59, 60, 61, 62, 63, 64)
WGMMA_SHAPE(120, 15, 60, 61, 62, 63, 64, 65, 66, 67, 68)
WGMMA_SHAPE(128, 16, 64, 65, 66, 67, 68, 69, 70, 71, 72)
WGMMA_SHAPE(136, 17, 68, 69, 70, 71, 72, 73, 74, 75, 76)
WGMMA_SHAPE(144, 18, 72, 73, 74, 75, 76, 77, 78, 79, 80)
WGMMA_SHAPE(152, 19, 76, 77, 78, 79, 80, 81, 82, 83, 84)
WGMMA_SHAPE(160, 20, 80, 81, 82, 83, 84, 85, 86, 87, 88)
WGMMA_SHAPE(168, 21, 84, 85, 86, 87, 88, 89, 90, 91, 92)
WGMMA_SHAPE(176, 22, 88, 89, 90, 91, 92, 93, 94, 95, 96)
WGMMA_SHAPE(184, 23, 92, 93, 94, 95, 96, 97, 98, 99, 100)
WGMMA_SHAPE(192, 24, 96, 97, 98, 99, 100, 101, 102, 103, 104)
WGMMA_SHAPE(200, 25, 100, 101, 102, 103, 104, 105, 106, 107, 108)
WGMMA_SHAPE(208, 26, 104, 105, 106, 107, 108, 109, 110, 111, 112)
WGMMA_SHAPE(216, 27, 108, 109, 110, 111, 112, 113, 114, 115, 116)
WGMMA_SHAPE(224, 28, 112, 113, 114, 115, 116, 117, 118, 119, 120)
WGMMA_SHAPE(232, 29, 116, 117, 118, 119, 120, 121, 122, 123, 124)
WGMMA_SHAPE(240, 30, 120, 121, 122, 123, 124, 125, 126, 127, 128)
WGMMA_SHAPE(248, 31, 124, 125, 126, 127, 128, 129, 130, 131, 132)
WGMMA_SHAPE(256, 32, 128, 129, 130, 131, 132, 133, 134, 135, 136)
#undef WGMMA_SHAPE

}  // namespace wgmma_asm

// wgmma.mma_async.sync.aligned.m64n<kN>k{16,8}.f32 (sm_90a), a and b from shared memory. T: __half,
// __nv_bfloat16, Tf32 (K-major only). accumulate: d += a b, else d = a b.
template <typename T, int kN, Major kMajorA = Major::k, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma_ss(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                         bool accumulate = true) {
  static_assert(!std::is_same_v<T, Tf32> || (kMajorA == Major::k && kMajorB == Major::k));
  wgmma_asm::Products<kN>::template ss<T, int(kMajorA), int(kMajorB)>(d, a, b, accumulate);
}

// The same with a from registers.
template <typename T, int kN, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma_rs(float (&d)[kN / 2], const unsigned (&a)[4], uint64_t b,
                                         bool accumulate = true) {
  static_assert(!std::is_same_v<T, Tf32> || kMajorB == Major::k);
  wgmma_asm::Products<kN>::template rs<T, int(kMajorB)>(d, a, b, accumulate);
}

// wgmma.mma_async.sp.sync.aligned.m64n<kN>k32.f32 (sm_90a): a is 2:4 sparse, compressed, K-major.
// T:
// __half, __nv_bfloat16.
template <typename T, int kN, int kSelector, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma_sp_ss(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                            unsigned metadata, bool accumulate = true) {
  static_assert(kSelector == 0 || kSelector == 1);
  wgmma_asm::Products<kN>::template sp_ss<T, kSelector, int(kMajorB)>(d, a, b, metadata,
                                                                      accumulate);
}

// The same with a from registers.
template <typename T, int kN, int kSelector, Major kMajorB = Major::k>
__device__ __forceinline__ void wgmma_sp_rs(float (&d)[kN / 2], const unsigned (&a)[4], uint64_t b,
                                            unsigned metadata, bool accumulate = true) {
  static_assert(kSelector == 0 || kSelector == 1);
  wgmma_asm::Products<kN>::template sp_rs<T, kSelector, int(kMajorB)>(d, a, b, metadata,
                                                                      accumulate);
}

}  // namespace fastops::ptx

#endif
