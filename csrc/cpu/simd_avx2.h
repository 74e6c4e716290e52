// VecF32 and VecF64 on AVX2, FMA and F16C. See simd.h for the contract.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/half.h"

namespace fastops::cpu {
namespace {

// The first n of 8 int32 lanes (or, read at the middle, of 4 int64 lanes as pairs) all ones.
alignas(32) constexpr int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

// n 16-bit values without touching what lies behind them.
inline __m128i load_halves(const void* p, int n) {
  alignas(16) uint16_t buffer[8] = {};
  for (int i = 0; i < n; ++i) buffer[i] = static_cast<const uint16_t*>(p)[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
inline void store_halves(void* p, __m128i h, int n) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), h);
  for (int i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = buffer[i];
}

// Rounds to nearest even in integer arithmetic; NaN keeps its sign and becomes quiet.
inline __m128i to_brain(__m256 f) {
  const __m256i u = _mm256_castps_si256(f);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i kept =
      _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q)));
  const __m256i high = _mm256_srli_epi32(kept, 16);
  const __m256i packed = _mm256_packus_epi32(high, high);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x88));
}
inline __m256 from_brain(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline __m128i read128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m128i read64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

struct VecF32 {
  using Scalar = float;
  struct Mask {
    __m256 v;
  };
  static constexpr int size = 8;
  static constexpr bool exact_fma = true;
  __m256 v;

  VecF32() = default;
  VecF32(__m256 r) : v(r) {}
  explicit VecF32(float f) : v(_mm256_set1_ps(f)) {}

  static Mask first(int n) { return {_mm256_castsi256_ps(lanes(n))}; }

  // One byte per lane, not zero = true.
  static Mask load_mask(const uint8_t* p) { return from_bytes(read64(p)); }
  static Mask load_mask(const uint8_t* p, int n) {
    alignas(8) uint8_t buffer[8] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return from_bytes(read64(buffer));
  }

  static VecF32 load(const float* p) { return _mm256_loadu_ps(p); }
  static VecF32 load(const double* p) {
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)),
                           _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
  }
  static VecF32 load(const f16* p) { return _mm256_cvtph_ps(read128(p)); }
  static VecF32 load(const bf16* p) { return from_brain(read128(p)); }
  static VecF32 load(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
  static VecF32 load(const double* p, int n) {
    alignas(32) double buffer[8] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return load(buffer);
  }
  static VecF32 load(const f16* p, int n) { return _mm256_cvtph_ps(load_halves(p, n)); }
  static VecF32 load(const bf16* p, int n) { return from_brain(load_halves(p, n)); }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(double* p) const {
    _mm256_storeu_pd(p, low());
    _mm256_storeu_pd(p + 4, high());
  }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half()); }
  void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_brain(v)); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, lanes(n), v); }
  void store(double* p, int n) const {
    alignas(32) double buffer[8];
    store(buffer);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  void store(f16* p, int n) const { store_halves(p, half(), n); }
  void store(bf16* p, int n) const { store_halves(p, to_brain(v), n); }

  void stream(float* p) const { _mm256_stream_ps(p, v); }
  void stream(double* p) const {
    _mm256_stream_pd(p, low());
    _mm256_stream_pd(p + 4, high());
  }
  void stream(f16* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), half()); }
  void stream(bf16* p) const { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_brain(v)); }

 private:
  static __m256i lanes(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - n));
  }
  static Mask from_bytes(__m128i bytes) {
    const __m256i wide = _mm256_cvtepu8_epi32(bytes);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()))};
  }
  __m256d low() const { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
  __m256d high() const { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
  __m128i half() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

inline VecF32 operator+(VecF32 a, VecF32 b) { return _mm256_add_ps(a.v, b.v); }
inline VecF32 operator-(VecF32 a, VecF32 b) { return _mm256_sub_ps(a.v, b.v); }
inline VecF32 operator*(VecF32 a, VecF32 b) { return _mm256_mul_ps(a.v, b.v); }
inline VecF32 operator/(VecF32 a, VecF32 b) { return _mm256_div_ps(a.v, b.v); }
inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline VecF32 fnma(VecF32 a, VecF32 b, VecF32 c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
inline VecF32 max(VecF32 a, VecF32 b) { return _mm256_max_ps(a.v, b.v); }
inline VecF32 min(VecF32 a, VecF32 b) { return _mm256_min_ps(a.v, b.v); }
inline VecF32 round(VecF32 a) { return _mm256_round_ps(a.v, 8); }
inline VecF32::Mask operator<(VecF32 a, VecF32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline VecF32::Mask operator==(VecF32 a, VecF32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline VecF32::Mask is_nan(VecF32 a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline VecF32 select(VecF32::Mask m, VecF32 a, VecF32 b) { return _mm256_blendv_ps(b.v, a.v, m.v); }
inline bool any(VecF32::Mask m) { return _mm256_movemask_ps(m.v) != 0; }
inline VecF32::Mask both(VecF32::Mask a, VecF32::Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
inline float hsum(VecF32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float hmax(VecF32 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
// a * 2^n; n outside [-126, 127] is flushed to 0 below and to infinity above.
inline VecF32 scale2(VecF32 a, VecF32 n) {
  const __m256 limited =
      _mm256_min_ps(_mm256_set1_ps(128), _mm256_max_ps(_mm256_set1_ps(-127), n.v));
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(limited), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
inline VecF32 scale2_or_zero(VecF32 a, VecF32 n) {
  const auto below = _mm256_cmp_ps(n.v, _mm256_set1_ps(-127), _CMP_LE_OQ);
  return _mm256_andnot_ps(below, scale2(a, n).v);
}

struct VecF64 {
  using Scalar = double;
  struct Mask {
    __m256d v;
  };
  static constexpr int size = 4;
  __m256d v;

  VecF64() = default;
  VecF64(__m256d r) : v(r) {}
  explicit VecF64(double f) : v(_mm256_set1_pd(f)) {}

  static Mask first(int n) { return {_mm256_castsi256_pd(lanes(n))}; }

  // One byte per lane, not zero = true.
  static Mask load_mask(const uint8_t* p) { return load_mask(p, 4); }
  static Mask load_mask(const uint8_t* p, int n) {
    uint32_t bytes = 0;
    for (int i = 0; i < n; ++i) bytes |= uint32_t(p[i]) << 8 * i;
    const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(int(bytes)));
    return {_mm256_castsi256_pd(_mm256_cmpgt_epi64(wide, _mm256_setzero_si256()))};
  }

  static VecF64 load(const double* p) { return _mm256_loadu_pd(p); }
  static VecF64 load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static VecF64 load(const f16* p) { return _mm256_cvtps_pd(_mm_cvtph_ps(read64(p))); }
  static VecF64 load(const bf16* p) { return from_brain4(read64(p)); }
  static VecF64 load(const double* p, int n) { return _mm256_maskload_pd(p, lanes(n)); }
  static VecF64 load(const float* p, int n) {
    return _mm256_cvtps_pd(_mm_maskload_ps(p, lanes4(n)));
  }
  static VecF64 load(const f16* p, int n) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(load_halves(p, n)));
  }
  static VecF64 load(const bf16* p, int n) { return from_brain4(load_halves(p, n)); }

  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(float* p) const { _mm_storeu_ps(p, single()); }
  void store(f16* p) const { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), half()); }
  void store(bf16* p) const { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), brain()); }
  void store(double* p, int n) const { _mm256_maskstore_pd(p, lanes(n), v); }
  void store(float* p, int n) const { _mm_maskstore_ps(p, lanes4(n), single()); }
  void store(f16* p, int n) const { store_halves(p, half(), n); }
  void store(bf16* p, int n) const { store_halves(p, brain(), n); }

  void stream(double* p) const { _mm256_stream_pd(p, v); }
  void stream(float* p) const { _mm_stream_ps(p, single()); }
  void stream(f16* p) const { store(p); }
  void stream(bf16* p) const { store(p); }

 private:
  static __m256i lanes(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - 2 * n));
  }
  static __m128i lanes4(int n) { return read128(kFirst + 8 - n); }
  static __m256d from_brain4(__m128i h) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(from_brain(h)));
  }
  __m128 single() const { return _mm256_cvtpd_ps(v); }
  __m128i half() const { return _mm_cvtps_ph(single(), _MM_FROUND_TO_NEAREST_INT); }
  __m128i brain() const { return to_brain(_mm256_castps128_ps256(single())); }
};

inline VecF64 operator+(VecF64 a, VecF64 b) { return _mm256_add_pd(a.v, b.v); }
inline VecF64 operator-(VecF64 a, VecF64 b) { return _mm256_sub_pd(a.v, b.v); }
inline VecF64 operator*(VecF64 a, VecF64 b) { return _mm256_mul_pd(a.v, b.v); }
inline VecF64 operator/(VecF64 a, VecF64 b) { return _mm256_div_pd(a.v, b.v); }
inline VecF64 fma(VecF64 a, VecF64 b, VecF64 c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
inline VecF64 fnma(VecF64 a, VecF64 b, VecF64 c) { return _mm256_fnmadd_pd(a.v, b.v, c.v); }
inline VecF64 max(VecF64 a, VecF64 b) { return _mm256_max_pd(a.v, b.v); }
inline VecF64 min(VecF64 a, VecF64 b) { return _mm256_min_pd(a.v, b.v); }
inline VecF64 round(VecF64 a) { return _mm256_round_pd(a.v, 8); }
inline VecF64::Mask operator<(VecF64 a, VecF64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
inline VecF64::Mask operator==(VecF64 a, VecF64 b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline VecF64::Mask is_nan(VecF64 a) { return {_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)}; }
inline VecF64 select(VecF64::Mask m, VecF64 a, VecF64 b) { return _mm256_blendv_pd(b.v, a.v, m.v); }
inline bool any(VecF64::Mask m) { return _mm256_movemask_pd(m.v) != 0; }
inline VecF64::Mask both(VecF64::Mask a, VecF64::Mask b) { return {_mm256_and_pd(a.v, b.v)}; }
inline double hsum(VecF64 a) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
inline double hmax(VecF64 a) {
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
// a * 2^n; n outside [-1022, 1023] is flushed to 0 below and to infinity above.
inline VecF64 scale2(VecF64 a, VecF64 n) {
  const __m256d limited =
      _mm256_min_pd(_mm256_set1_pd(1024), _mm256_max_pd(_mm256_set1_pd(-1023), n.v));
  const __m256i biased =
      _mm256_cvtepi32_epi64(_mm_add_epi32(_mm256_cvtpd_epi32(limited), _mm_set1_epi32(1023)));
  return _mm256_mul_pd(a.v, _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52)));
}
inline VecF64 scale2_or_zero(VecF64 a, VecF64 n) {
  const auto below = _mm256_cmp_pd(n.v, _mm256_set1_pd(-1023), _CMP_LE_OQ);
  return _mm256_andnot_pd(below, scale2(a, n).v);
}

inline void store_fence() { _mm_sfence(); }

// lane r of the result = the reduction over the lanes of rows[r].
template <typename Op>
inline VecF32 transpose_reduce(const VecF32* rows, Op op) {
  VecF32 quad[2];
  for (int i = 0; i < 2; ++i) {
    const VecF32* r = rows + 4 * i;
    const VecF32 ab =
        op(VecF32(_mm256_unpacklo_ps(r[0].v, r[1].v)), VecF32(_mm256_unpackhi_ps(r[0].v, r[1].v)));
    const VecF32 cd =
        op(VecF32(_mm256_unpacklo_ps(r[2].v, r[3].v)), VecF32(_mm256_unpackhi_ps(r[2].v, r[3].v)));
    const __m256d x = _mm256_castps_pd(ab.v), y = _mm256_castps_pd(cd.v);
    quad[i] = op(VecF32(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y))),
                 VecF32(_mm256_castpd_ps(_mm256_unpackhi_pd(x, y))));
  }
  return op(VecF32(_mm256_permute2f128_ps(quad[0].v, quad[1].v, 0x20)),
            VecF32(_mm256_permute2f128_ps(quad[0].v, quad[1].v, 0x31)));
}

}  // namespace
}  // namespace fastops::cpu
