// VecF32 and VecF64 on AVX-512 (F, BW, DQ, VL, BF16). See simd.h for the contract.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/half.h"

namespace fastops::cpu {
namespace {

struct VecF32 {
  using Scalar = float;
  using Mask = __mmask16;
  static constexpr int size = 16;
  static constexpr bool exact_fma = true;
  __m512 v;

  VecF32() = default;
  VecF32(__m512 r) : v(r) {}
  explicit VecF32(float f) : v(_mm512_set1_ps(f)) {}

  static Mask first(int n) { return Mask(_bzhi_u32(0xffff, n)); }

  // One byte per lane, not zero = true.
  static Mask load_mask(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  static Mask load_mask(const uint8_t* p, int n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
  }

  static VecF32 load(const float* p) { return _mm512_loadu_ps(p); }
  static VecF32 load(const double* p) {
    const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(p)));
    return _mm512_insertf32x8(low, _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)), 1);
  }
  static VecF32 load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static VecF32 load(const bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static VecF32 load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static VecF32 load(const double* p, int n) {
    const __m512d low = _mm512_maskz_loadu_pd(__mmask8(first(n)), p);
    const __m512d high = _mm512_maskz_loadu_pd(__mmask8(first(n) >> 8), p + 8);
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high),
                              1);
  }
  static VecF32 load(const f16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static VecF32 load(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(double* p) const {
    _mm512_storeu_pd(p, low());
    _mm512_storeu_pd(p + 8, high());
  }
  void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half()); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), brain()); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store(double* p, int n) const {
    _mm512_mask_storeu_pd(p, __mmask8(first(n)), low());
    _mm512_mask_storeu_pd(p + 8, __mmask8(first(n) >> 8), high());
  }
  void store(f16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }
  void store(bf16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), brain()); }

  void stream(float* p) const { _mm512_stream_ps(p, v); }
  void stream(double* p) const {
    _mm512_stream_pd(p, low());
    _mm512_stream_pd(p + 8, high());
  }
  void stream(f16* p) const { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), half()); }
  void stream(bf16* p) const { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), brain()); }

 private:
  static __m512 widen(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  __m512d low() const { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
  __m512d high() const { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }
  __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  __m256i brain() const { return (__m256i)_mm512_cvtneps_pbh(v); }
};

inline VecF32 operator+(VecF32 a, VecF32 b) { return _mm512_add_ps(a.v, b.v); }
inline VecF32 operator-(VecF32 a, VecF32 b) { return _mm512_sub_ps(a.v, b.v); }
inline VecF32 operator*(VecF32 a, VecF32 b) { return _mm512_mul_ps(a.v, b.v); }
inline VecF32 operator/(VecF32 a, VecF32 b) { return _mm512_div_ps(a.v, b.v); }
inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline VecF32 fnma(VecF32 a, VecF32 b, VecF32 c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
inline VecF32 max(VecF32 a, VecF32 b) { return _mm512_max_ps(a.v, b.v); }
inline VecF32 min(VecF32 a, VecF32 b) { return _mm512_min_ps(a.v, b.v); }
inline VecF32 round(VecF32 a) { return _mm512_roundscale_ps(a.v, 8); }
// Results that would not be normal cost Intel's cores hundreds of clocks each: they are 0 at once.
inline __mmask16 normal_power(VecF32 n) {
  return _mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-126), _CMP_NLT_UQ);
}
inline VecF32 scale2(VecF32 a, VecF32 n) {
  const auto zero_or_nan = _mm512_mul_ps(a.v, _mm512_setzero_ps());
  return _mm512_mask_scalef_ps(zero_or_nan, normal_power(n), a.v, n.v);
}
inline VecF32 scale2_or_zero(VecF32 a, VecF32 n) {
  return _mm512_maskz_scalef_ps(normal_power(n), a.v, n.v);
}
inline __mmask16 operator<(VecF32 a, VecF32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline __mmask16 operator==(VecF32 a, VecF32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline __mmask16 is_nan(VecF32 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
inline VecF32 select(__mmask16 m, VecF32 a, VecF32 b) { return _mm512_mask_blend_ps(m, b.v, a.v); }
inline bool any(__mmask16 m) { return m != 0; }
inline __mmask16 both(__mmask16 a, __mmask16 b) { return a & b; }
inline float hsum(VecF32 a) { return _mm512_reduce_add_ps(a.v); }
inline float hmax(VecF32 a) { return _mm512_reduce_max_ps(a.v); }

struct VecF64 {
  using Scalar = double;
  using Mask = __mmask8;
  static constexpr int size = 8;
  __m512d v;

  VecF64() = default;
  VecF64(__m512d r) : v(r) {}
  explicit VecF64(double f) : v(_mm512_set1_pd(f)) {}

  static Mask first(int n) { return Mask(_bzhi_u32(0xff, n)); }

  // One byte per lane, not zero = true.
  static Mask load_mask(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return __mmask8(_mm_test_epi8_mask(bytes, bytes));
  }
  static Mask load_mask(const uint8_t* p, int n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
    return __mmask8(_mm_test_epi8_mask(bytes, bytes));
  }

  static VecF64 load(const double* p) { return _mm512_loadu_pd(p); }
  static VecF64 load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static VecF64 load(const f16* p) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static VecF64 load(const bf16* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static VecF64 load(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static VecF64 load(const float* p, int n) {
    return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(first(n), p));
  }
  static VecF64 load(const f16* p, int n) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_maskz_loadu_epi16(first(n), p)));
  }
  static VecF64 load(const bf16* p, int n) { return widen(_mm_maskz_loadu_epi16(first(n), p)); }

  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(float* p) const { _mm256_storeu_ps(p, single()); }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half()); }
  void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), brain()); }
  void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }
  void store(float* p, int n) const { _mm256_mask_storeu_ps(p, first(n), single()); }
  void store(f16* p, int n) const { _mm_mask_storeu_epi16(p, first(n), half()); }
  void store(bf16* p, int n) const { _mm_mask_storeu_epi16(p, first(n), brain()); }

  void stream(double* p) const { _mm512_stream_pd(p, v); }
  void stream(float* p) const { _mm256_stream_ps(p, single()); }
  void stream(f16* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), half()); }
  void stream(bf16* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), brain()); }

 private:
  static __m512d widen(__m128i h) {
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)));
  }
  __m256 single() const { return _mm512_cvtpd_ps(v); }
  __m128i half() const {
    return _mm256_cvtps_ph(single(), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  __m128i brain() const { return (__m128i)_mm256_cvtneps_pbh(single()); }
};

inline VecF64 operator+(VecF64 a, VecF64 b) { return _mm512_add_pd(a.v, b.v); }
inline VecF64 operator-(VecF64 a, VecF64 b) { return _mm512_sub_pd(a.v, b.v); }
inline VecF64 operator*(VecF64 a, VecF64 b) { return _mm512_mul_pd(a.v, b.v); }
inline VecF64 operator/(VecF64 a, VecF64 b) { return _mm512_div_pd(a.v, b.v); }
inline VecF64 fma(VecF64 a, VecF64 b, VecF64 c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
inline VecF64 fnma(VecF64 a, VecF64 b, VecF64 c) { return _mm512_fnmadd_pd(a.v, b.v, c.v); }
inline VecF64 max(VecF64 a, VecF64 b) { return _mm512_max_pd(a.v, b.v); }
inline VecF64 min(VecF64 a, VecF64 b) { return _mm512_min_pd(a.v, b.v); }
inline VecF64 round(VecF64 a) { return _mm512_roundscale_pd(a.v, 8); }
inline __mmask8 normal_power(VecF64 n) {
  return _mm512_cmp_pd_mask(n.v, _mm512_set1_pd(-1022), _CMP_NLT_UQ);
}
inline VecF64 scale2(VecF64 a, VecF64 n) {
  const auto zero_or_nan = _mm512_mul_pd(a.v, _mm512_setzero_pd());
  return _mm512_mask_scalef_pd(zero_or_nan, normal_power(n), a.v, n.v);
}
inline VecF64 scale2_or_zero(VecF64 a, VecF64 n) {
  return _mm512_maskz_scalef_pd(normal_power(n), a.v, n.v);
}
inline __mmask8 operator<(VecF64 a, VecF64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
inline __mmask8 operator==(VecF64 a, VecF64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
inline __mmask8 is_nan(VecF64 a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q); }
inline VecF64 select(__mmask8 m, VecF64 a, VecF64 b) { return _mm512_mask_blend_pd(m, b.v, a.v); }
inline bool any(__mmask8 m) { return m != 0; }
inline __mmask8 both(__mmask8 a, __mmask8 b) { return a & b; }
inline double hsum(VecF64 a) { return _mm512_reduce_add_pd(a.v); }
inline double hmax(VecF64 a) { return _mm512_reduce_max_pd(a.v); }

inline void store_fence() { _mm_sfence(); }

// lane r of the result = the max (sum) over the lanes of rows[r].
template <typename Op>
inline VecF32 transpose_reduce(const VecF32* rows, Op op) {
  VecF32 quad[4];
  for (int i = 0; i < 4; ++i) {
    const VecF32* r = rows + 4 * i;
    const VecF32 ab =
        op(VecF32(_mm512_unpacklo_ps(r[0].v, r[1].v)), VecF32(_mm512_unpackhi_ps(r[0].v, r[1].v)));
    const VecF32 cd =
        op(VecF32(_mm512_unpacklo_ps(r[2].v, r[3].v)), VecF32(_mm512_unpackhi_ps(r[2].v, r[3].v)));
    const __m512d x = _mm512_castps_pd(ab.v), y = _mm512_castps_pd(cd.v);
    quad[i] = op(VecF32(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y))),
                 VecF32(_mm512_castpd_ps(_mm512_unpackhi_pd(x, y))));
  }
  auto halves = [op](VecF32 a, VecF32 b) {
    return op(VecF32(_mm512_shuffle_f32x4(a.v, b.v, 0x88)),
              VecF32(_mm512_shuffle_f32x4(a.v, b.v, 0xdd)));
  };
  return halves(halves(quad[0], quad[1]), halves(quad[2], quad[3]));
}

}  // namespace
}  // namespace fastops::cpu
