// Host bodies of csrc/cuda/ptx/mma.cuh and mma_sparse.cuh. Products are exact, their sum with the
// accumulator is taken in fp64 and rounded once: no worse than any tensor core, and not its bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt/threads.h"

namespace simt {

enum class Operand : int { f16, bf16, tf32 };

struct Mma {
  Operand type;
  int k;         // logical columns of a
  int selector;  // -1: a is dense
};
// d: 4 words; a, b: as many words as the shape has.
SIMT_CALL void mma(Mma shape, float* d, const unsigned* a, const unsigned* b, unsigned metadata);

template <typename T>
inline constexpr Operand kOperand = std::is_same_v<T, __half> ? Operand::f16 : Operand::bf16;

}  // namespace simt

namespace fastops::ptx {

template <typename T>
SIMT_INLINE void mma_m16n8k8(float (&d)[4], const unsigned (&a)[2], unsigned b0) {
  simt::mma({simt::kOperand<T>, 8, -1}, d, a, &b0, 0);
}

template <typename T>
SIMT_INLINE void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned b[2] = {b0, b1};
  simt::mma({simt::kOperand<T>, 16, -1}, d, a, b, 0);
}

SIMT_INLINE void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned b[2] = {b0, b1};
  simt::mma({simt::Operand::tf32, 8, -1}, d, a, b, 0);
}

template <typename T, int kSelector>
SIMT_INLINE void mma_sp_m16n8k16(float (&d)[4], const unsigned (&a)[2], unsigned b0, unsigned b1,
                                 unsigned metadata) {
  static_assert(0 <= kSelector && kSelector < 4);
  const unsigned b[2] = {b0, b1};
  simt::mma({simt::kOperand<T>, 16, kSelector}, d, a, b, metadata);
}

template <typename T, int kSelector>
SIMT_INLINE void mma_sp_m16n8k32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[4],
                                 unsigned metadata) {
  static_assert(kSelector == 0 || kSelector == 1);
  simt::mma({simt::kOperand<T>, 32, kSelector}, d, a, b, metadata);
}

template <int kSelector>
SIMT_INLINE void mma_sp_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[2], unsigned b0,
                                     unsigned b1, unsigned metadata) {
  static_assert(0 <= kSelector && kSelector < 4);
  const unsigned b[2] = {b0, b1};
  simt::mma({simt::Operand::tf32, 8, kSelector}, d, a, b, metadata);
}

template <int kSelector>
SIMT_INLINE void mma_sp_m16n8k16_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[4],
                                      unsigned metadata) {
  static_assert(kSelector == 0 || kSelector == 1);
  simt::mma({simt::Operand::tf32, 16, kSelector}, d, a, b, metadata);
}

SIMT_INLINE unsigned to_tf32(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;  // the one NaN
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace fastops::ptx
