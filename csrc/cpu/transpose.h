// Square transposes in registers: rows[i] lane j becomes rows[j] lane i, for V::size rows.
#pragma once

#include "cpu/simd.h"

namespace fastops::cpu {
namespace {

// Through memory: for types without a kernel of their own below.
template <typename V>
inline void transpose(V* rows) {
  typename V::Scalar values[V::size][V::size], turned[V::size][V::size];
  for (int i = 0; i < V::size; ++i) rows[i].store(values[i]);
  for (int i = 0; i < V::size; ++i)
    for (int j = 0; j < V::size; ++j) turned[j][i] = values[i][j];
  for (int i = 0; i < V::size; ++i) rows[i] = V::load(turned[i]);
}

#if defined(FASTOPS_AVX512)
inline void transpose(VecF32* rows) {
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  const auto low = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  // u[4 g + c]: in its 128-bit block b, column 4 b + c of rows 4 g to 4 g + 3.
  for (int g = 0; g < 16; g += 4) {
    u[g] = low(t[g], t[g + 2]);
    u[g + 1] = high(t[g], t[g + 2]);
    u[g + 2] = low(t[g + 1], t[g + 3]);
    u[g + 3] = high(t[g + 1], t[g + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(even, even2, 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    rows[12 + c] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
#elif defined(__AVX2__)
inline void transpose(VecF32* rows) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int g = 0; g < 8; g += 4) {
    u[g] = _mm256_shuffle_ps(t[g], t[g + 2], 0x44);
    u[g + 1] = _mm256_shuffle_ps(t[g], t[g + 2], 0xee);
    u[g + 2] = _mm256_shuffle_ps(t[g + 1], t[g + 3], 0x44);
    u[g + 3] = _mm256_shuffle_ps(t[g + 1], t[g + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}
#endif

}  // namespace
}  // namespace fastops::cpu
