// A square of VecF32::size vectors, transposed in registers: lane j of row i <-> lane i of row j.
#pragma once

#include "cpu/simd.h"

namespace fastops::cpu {
namespace {

#if defined(FASTOPS_AVX512)
inline void transpose(VecF32 (&r)[16]) {
  __m512 q[16];  // q[4 i + c], quarter b: rows 4 i to 4 i + 3 of column 4 b + c
  for (int i = 0; i < 16; i += 4) {
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(r[i].v, r[i + 1].v));
    const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v));
    const __m512d ef = _mm512_castps_pd(_mm512_unpackhi_ps(r[i].v, r[i + 1].v));
    const __m512d gh = _mm512_castps_pd(_mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v));
    q[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    q[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    q[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ef, gh));
    q[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ef, gh));
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(q[c], q[4 + c], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(q[c], q[4 + c], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(q[8 + c], q[12 + c], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(q[8 + c], q[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(even, even2, 0x88);
    r[4 + c] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    r[12 + c] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
#elif defined(__AVX2__)
inline void transpose(VecF32 (&r)[8]) {
  __m256 q[8];  // q[4 i + c], half b: rows 4 i to 4 i + 3 of column 4 b + c
  for (int i = 0; i < 8; i += 4) {
    const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(r[i].v, r[i + 1].v));
    const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(r[i + 2].v, r[i + 3].v));
    const __m256d ef = _mm256_castps_pd(_mm256_unpackhi_ps(r[i].v, r[i + 1].v));
    const __m256d gh = _mm256_castps_pd(_mm256_unpackhi_ps(r[i + 2].v, r[i + 3].v));
    q[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    q[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    q[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ef, gh));
    q[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ef, gh));
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm256_permute2f128_ps(q[c], q[4 + c], 0x20);
    r[4 + c] = _mm256_permute2f128_ps(q[c], q[4 + c], 0x31);
  }
}
#else
inline void transpose(VecF32 (&r)[4]) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
}
#endif

}  // namespace
}  // namespace fastops::cpu
