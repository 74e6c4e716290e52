// One kept element of VecF32::size outputs at a time: each lane picks its own activation from the
// group that the lanes share, with a permute instead of a gather.
#pragma once

#include "cpu/simd.h"

namespace fastops::nm::cpu {
namespace {

using fastops::cpu::VecF32;

// Index words, one per lane; the lowest bits are the current index. What lies above them is left
// there: every lookup reads its own bits only.
//   lookup<2>: 4 floats from `group` on, lookup<4>: 16, lookup<8>: 32
#if defined(FASTOPS_AVX512)
struct Indices {
  __m512i v;
  static Indices load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  template <int kBits>
  void next() {
    v = _mm512_srli_epi32(v, kBits);
  }
  // The current index counted from the last multiple of 16 before `group`, which it adds to.
  template <int kBits>
  Indices from_line(int32_t group) const {
    const __m512i mask = _mm512_set1_epi32((1 << kBits) - 1);
    return {_mm512_ternarylogic_epi32(v, mask, _mm512_set1_epi32(group), 0xEA)};  // & mask | group
  }
};
// A lookup may load the whole line that its group is in, where no group is in two: a line costs no
// more than its load, while on AMD's cores broadcasting 16 bytes of it costs as much as a lookup.
constexpr bool kLookupByLine = true;
inline VecF32 lookup_in_line(const float* line, Indices i) {
  return _mm512_permutexvar_ps(i.v, _mm512_load_ps(line));
}
template <int kBits>
VecF32 lookup(const float* group, Indices i) {
  if constexpr (kBits == 2) {
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(group)), i.v);
  } else if constexpr (kBits == 4) {
    return _mm512_permutexvar_ps(i.v, _mm512_loadu_ps(group));
  } else {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(group), i.v, _mm512_loadu_ps(group + 16));
  }
}
#elif defined(__AVX2__)
struct Indices {
  __m256i v;
  static Indices load(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  template <int kBits>
  void next() {
    v = _mm256_srli_epi32(v, kBits);
  }
};
inline __m256 lookup16(const float* group, __m256i i) {
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(group), i);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(group + 8), i);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
template <int kBits>
VecF32 lookup(const float* group, Indices i) {
  if constexpr (kBits == 2) {
    return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(group)), i.v);
  } else if constexpr (kBits == 4) {
    return lookup16(group, i.v);
  } else {
    return _mm256_blendv_ps(lookup16(group, i.v), lookup16(group + 16, i.v),
                            _mm256_castsi256_ps(_mm256_slli_epi32(i.v, 27)));
  }
}
#else
struct Indices {
  uint32_t v[VecF32::size];
  static Indices load(const uint32_t* p) {
    Indices i;
    __builtin_memcpy(i.v, p, sizeof(i.v));
    return i;
  }
  template <int kBits>
  void next() {
    for (uint32_t& word : v) word >>= kBits;
  }
};
template <int kBits>
VecF32 lookup(const float* group, Indices i) {
  constexpr uint32_t kMask = kBits == 2 ? 3 : kBits == 4 ? 15 : 31;
  VecF32 r;
  for (int lane = 0; lane < VecF32::size; ++lane) r.v[lane] = group[i.v[lane] & kMask];
  return r;
}
#endif
#ifndef FASTOPS_AVX512
constexpr bool kLookupByLine = false;
#endif

}  // namespace
}  // namespace fastops::nm::cpu
