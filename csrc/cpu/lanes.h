// Masks of lanes from the bits of an integer.
#pragma once

#include "cpu/simd.h"

namespace fastops::cpu {
namespace {

// Lane i is bit i.
inline VecF32::Mask mask_of_bits(uint32_t bits) {
#if defined(FASTOPS_AVX512)
  return VecF32::Mask(bits);
#elif defined(__AVX2__)
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(int(bits));
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, each), each))};
#else
  VecF32::Mask m;
  for (int i = 0; i < VecF32::size; ++i) m.v[i] = -int32_t(bits >> i & 1);
  return m;
#endif
}

}  // namespace
}  // namespace fastops::cpu
