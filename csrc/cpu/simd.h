// The vector types of the CPU kernels, for the instruction set this file is compiled for.
//
// VecF32 and VecF64 (V below) have V::size lanes of V::Scalar and the same interface everywhere:
//   V(s)                         s in every lane
//   V::load(p), V::load(p, n)    size (or the first n) elements from any address, converted from
//                                float, double, f16 or bf16; lanes from n on are 0 and their memory
//                                is never touched. 0 <= n <= size.
//   v.store(p), v.store(p, n)    the reverse, rounding to nearest even; NaN stays NaN. On AVX-512
//                                bf16 results below 2^-126 are flushed to 0, as the instruction
//                                does.
//   v.stream(p)                  past the caches; p aligned to the bytes written. store_fence()
//                                once when done.
//   + - * / fma(a,b,c)=a*b+c fnma(a,b,c)=c-a*b (rounded once if V::exact_fma) round (to even)
//   scale2(a,n)=a*2^n for whole n, a*0 where 2^n is below the normal numbers; scale2_or_zero(a,n)
//                                is 0 there even if a is NaN
//   max(a, b), min(a, b)         b where either is NaN: an accumulator as b never becomes NaN,
//                                a clamp with the bound as a lets NaN through
//   a < b, a == b, is_nan(a)     V::Mask; with first(n), load_mask(bytes), both(m, m), any(m)
//   select(m, a, b)              a where m, else b
//   hsum(v), hmax(v)             over the lanes, always in the same order
//   transpose_reduce(rows, op)   (VecF32) lane r = op over the lanes of rows[r], size rows
//
// Everything has internal linkage: a copy compiled for one instruction set must never be merged
// with that of another. For the same reason no inline function of the standard library is used.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BF16__)
#include "cpu/simd_avx512.h"  // IWYU pragma: export
#define FASTOPS_AVX512 1
#define FASTOPS_STREAMS true
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "cpu/simd_avx2.h"  // IWYU pragma: export
#define FASTOPS_STREAMS true
#else
#include "cpu/simd_portable.h"  // IWYU pragma: export
#define FASTOPS_STREAMS false
#endif

namespace fastops::cpu {
namespace {

// Whether v.stream(p) is more than a store.
inline constexpr bool kStreams = FASTOPS_STREAMS;

// Into L2: the distance between request and use is longer than L1 can hold.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// For a stream that is read on from p: the page a page ahead, by one of its lines. The hardware,
// which stops at the end of a page, goes on from there; asking for every line costs more than it
// gains where nothing else is done between.
inline constexpr int64_t kPageBytes = 4096;
inline void prefetch_page(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + kPageBytes, 0, 3);
}

// What a template gets by type: the vector that accumulates for a scalar.
template <typename S>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF32;
};
template <>
struct VecOf<double> {
  using type = VecF64;
};

}  // namespace
}  // namespace fastops::cpu
