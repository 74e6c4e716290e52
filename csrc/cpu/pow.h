// Logarithms, roots and the lanes of masks: what maps beyond exp need. Written once on the
// compiler's vectors, which every instruction set's registers are. Relative error of log below
// 2 ulp for VecF32, 1 ulp for VecF64, for positive normal numbers.
#pragma once

#include "cpu/exp.h"

namespace fastops::cpu {
namespace {

template <typename Scalar>
struct BitsOf {
  using Int = int32_t;
};
template <>
struct BitsOf<double> {
  using Int = int64_t;
};

// Natural logarithm: exponent, and that of a mantissa m in [sqrt(1/2), sqrt(2)) by its series in
// f = m - 1 (fp32: nothing to divide), or that of log((1 + s) / (1 - s)), s = f / (m + 1).
template <typename V>
inline V log(V x) {
  using S = typename V::Scalar;
  using I = typename BitsOf<S>::Int;
  constexpr bool wide = sizeof(S) == 8;
  typedef I Ints __attribute__((vector_size(sizeof(V))));
  typedef S Floats __attribute__((vector_size(sizeof(V))));
  constexpr int shift = wide ? 52 : 23;
  constexpr I root_half = wide ? I(0x3fe6a09e667f3bcdll) : I(0x3f3504f3);
  Ints bits = (Ints)x.v;
  const Ints exponent = (bits - root_half) >> shift;
  bits -= exponent << shift;
  V m;
  __builtin_memcpy(&m, &bits, sizeof(V));
  V k;
  const Floats whole = __builtin_convertvector(exponent, Floats);
  __builtin_memcpy(&k, &whole, sizeof(V));
  const V f = m - V(S(1)), half = V(S(0.5)) * f * f;
  const V low(S(wide ? 1.90821492927058770002e-10 : 9.0580006145e-06));
  const V high(S(wide ? 6.93147180369123816490e-01 : 6.9313812256e-01));
  if constexpr (wide) {
    constexpr double c[] = {1.479819860511658591e-01, 1.531383769920937332e-01,
                            1.818357216161805012e-01, 2.222219843214978396e-01,
                            2.857142874366239149e-01, 3.999999999940941908e-01,
                            6.666666666666735130e-01};
    const V s = f / (V(S(2)) + f), z = s * s;
    V r(c[0]);
    for (int i = 1; i < 7; ++i) r = fma(r, z, V(c[i]));
    return fma(k, high, f - (half - fma(s, fma(r, z, half), k * low)));
  } else {
    constexpr float c[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                           -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                           2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    V r(c[0]);
    for (int i = 1; i < 9; ++i) r = fma(r, f, V(c[i]));
    return fma(k, high, f - (half - fma(r * f, f * f, k * low)));
  }
}

// log(1 + t) for t > -1, given w = 1 + t rounded: what rounding lost matters near w = 1 only.
template <typename V>
inline V log1p(V t, V w) {
  using S = typename V::Scalar;
  const V lost = (t - (w - V(S(1)))) * (V(S(2)) - w);
  return log(w) + select(both(V(S(0.5)) < w, w < V(S(2))), lost, V(S(0)));
}
template <typename V>
inline V log1p(V t) {
  return log1p(t, V(typename V::Scalar(1)) + t);
}

// |s| without the branch of a sign.
template <typename V>
inline V magnitude(V s) {
  return max(s, V(typename V::Scalar(0)) - s);
}

// exp(x) - 1 for x <= 88 (VecF32), by Kahan's correction: (u - 1) x / log(u), u = exp(x).
template <typename V>
inline V expm1(V x) {
  using S = typename V::Scalar;
  const V one(S(1)), u = exp(x), less = u - one;
  const V corrected = less * x / log(u);
  return select(u == one, x, select(less == V(S(-1)), less, corrected));
}

// 1 / x for normal x to 2 ulp, where a division would cost more than what it is for.
template <typename V>
inline V reciprocal(V x) {
  return V(typename V::Scalar(1)) / x;
}
#if defined(FASTOPS_AVX512) || defined(__AVX2__)
inline VecF32 reciprocal(VecF32 x) {
#if defined(FASTOPS_AVX512)
  const VecF32 r = _mm512_rcp14_ps(x.v);
#else
  const VecF32 r = _mm256_rcp_ps(x.v);
#endif
  return fma(r, fnma(x, r, VecF32(1.f)), r);
}
#endif

#if defined(FASTOPS_AVX512)
inline VecF32 sqrt(VecF32 x) { return _mm512_sqrt_ps(x.v); }
inline VecF64 sqrt(VecF64 x) { return _mm512_sqrt_pd(x.v); }
inline unsigned lane_bits(__mmask16 m) { return m; }
inline unsigned lane_bits(__mmask8 m) { return m; }
#elif defined(__AVX2__)
inline VecF32 sqrt(VecF32 x) { return _mm256_sqrt_ps(x.v); }
inline VecF64 sqrt(VecF64 x) { return _mm256_sqrt_pd(x.v); }
inline unsigned lane_bits(VecF32::Mask m) { return unsigned(_mm256_movemask_ps(m.v)); }
inline unsigned lane_bits(VecF64::Mask m) { return unsigned(_mm256_movemask_pd(m.v)); }
#else
template <typename S>
inline VecPortable<S> sqrt(VecPortable<S> x) {
  for (int i = 0; i < VecPortable<S>::size; ++i)
    x.v[i] = S(sizeof(S) == 8 ? __builtin_sqrt(x.v[i]) : __builtin_sqrtf(float(x.v[i])));
  return x;
}
template <typename M>
inline unsigned lane_bits(M m) {
  unsigned bits = 0;
  for (unsigned i = 0; i < sizeof(m.v) / sizeof(m.v[0]); ++i) bits |= unsigned(m.v[i] != 0) << i;
  return bits;
}
#endif

// Packs the lanes of v whose bits are set into `to`, in order, and returns how many there are. Up
// to V::size elements of `to` are overwritten. expand is the reverse: lane i of the result is the
// next element of v where bit i is set, 0 elsewhere.
#if defined(FASTOPS_AVX512)
// In a register first: compressing to memory is slow on AMD's cores.
inline int compress(VecF32 v, unsigned bits, float* to) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(bits), v.v));
  return __builtin_popcount(bits);
}
inline int compress(VecF64 v, unsigned bits, double* to) {
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(__mmask8(bits), v.v));
  return __builtin_popcount(bits);
}
inline VecF32 expand(VecF32 v, unsigned bits) {
  return _mm512_maskz_expand_ps(__mmask16(bits), v.v);
}
inline VecF64 expand(VecF64 v, unsigned bits) {
  return _mm512_maskz_expand_pd(__mmask8(bits), v.v);
}
#else
template <typename V>
inline int compress(V v, unsigned bits, typename V::Scalar* to) {
  typename V::Scalar lane[V::size];
  v.store(lane);
  int count = 0;
  for (; bits; bits &= bits - 1) to[count++] = lane[__builtin_ctz(bits)];
  return count;
}
template <typename V>
inline V expand(V v, unsigned bits) {
  if (!bits) return V(typename V::Scalar(0));
  typename V::Scalar from[V::size], to[V::size] = {};
  v.store(from);
  for (int i = 0; bits; bits &= bits - 1) to[__builtin_ctz(bits)] = from[i++];
  return V::load(to);
}
#if defined(__AVX2__)
// Where each lane comes from, for every set of bits.
struct LaneOrders {
  alignas(8) uint8_t compress[256][8] = {}, expand[256][8] = {};
  constexpr LaneOrders() {
    for (unsigned bits = 0; bits < 256; ++bits)
      for (unsigned lane = 0, count = 0; lane < 8; ++lane)
        if (bits >> lane & 1) {
          compress[bits][count] = uint8_t(lane);
          expand[bits][lane] = uint8_t(count++);
        }
  }
};
inline constexpr LaneOrders kLaneOrders;

inline __m256i lane_order(const uint8_t (&order)[8]) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(order)));
}
inline int compress(VecF32 v, unsigned bits, float* to) {
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(v.v, lane_order(kLaneOrders.compress[bits])));
  return __builtin_popcount(bits);
}
inline VecF32 expand(VecF32 v, unsigned bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(int(bits)), lane);
  const __m256 from = _mm256_permutevar8x32_ps(v.v, lane_order(kLaneOrders.expand[bits]));
  return _mm256_and_ps(from, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}
#endif
#endif

}  // namespace
}  // namespace fastops::cpu
