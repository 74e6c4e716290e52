// Two vectors at a time, 2 * VecF32::size elements in memory: the unit of the row kernels, because
// one cache line of 16-bit values fills two fp32 vectors.
//
// A pair type says in which order the two vectors hold the elements. In memory order (Natural<T>)
// any unit can be read back at any offset; the bf16 order (even elements, odd elements) is cheaper
// to convert, but what was loaded so must be stored so, unit by unit.
#pragma once

#include "cpu/simd.h"

namespace fastops::cpu {
namespace {

inline constexpr int kPair = 2 * VecF32::size;

template <typename T>
struct Natural {
  using Value = T;
  static constexpr bool any_offset = true;

  static void load(const T* p, VecF32& a, VecF32& b) {
    a = VecF32::load(p);
    b = VecF32::load(p + VecF32::size);
  }
  // The first n elements; -inf in the other lanes.
  static void load(const T* p, int n, VecF32& a, VecF32& b) {
    const VecF32 low(-__builtin_inff());
    const int first = n < VecF32::size ? n : VecF32::size;
    a = select(VecF32::first(first), VecF32::load(p, first), low);
    b = select(VecF32::first(n - first), VecF32::load(p + first, n - first), low);
  }
  static void store(T* p, VecF32 a, VecF32 b) {
    a.store(p);
    b.store(p + VecF32::size);
  }
  static void store(T* p, int n, VecF32 a, VecF32 b) {
    const int first = n < VecF32::size ? n : VecF32::size;
    a.store(p, first);
    b.store(p + first, n - first);
  }
  static void stream(T* p, VecF32 a, VecF32 b) {
    a.stream(p);
    b.stream(p + VecF32::size);
  }
};

// The maximum over many units. Never NaN, unless a NaN is in the data.
template <typename T>
class PairMax {
 public:
  void add(const T* p) {
    VecF32 a, b;
    Natural<T>::load(p, a, b);
    a_ = max(a, a_);
    b_ = max(b, b_);
  }
  void add(const T* p, int n) {
    VecF32 a, b;
    Natural<T>::load(p, n, a, b);
    a_ = max(a, a_);
    b_ = max(b, b_);
  }
  // add(p) in two steps.
  void add_first(const T* p) { a_ = max(VecF32::load(p), a_); }
  void add_second(const T* p) { b_ = max(VecF32::load(p + VecF32::size), b_); }
  VecF32 lanes() const { return max(a_, b_); }

 private:
  VecF32 a_{-__builtin_inff()}, b_{-__builtin_inff()};
};

#ifdef FASTOPS_AVX512
// 16-bit floats order as integers once the magnitude bits of negative ones are flipped: 32 per
// instruction, without widening.
template <typename T>
class HalfMax {
 public:
  void add(const T* p) { add(_mm512_loadu_si512(p)); }
  void add(const T* p, int n) {
    add(_mm512_mask_loadu_epi16(_mm512_set1_epi16(kLow), __mmask32(_bzhi_u32(~0u, n)), p));
  }
  VecF32 lanes() const {
    alignas(64) T h[32];
    _mm512_store_si512(h, flip(most_));
    return max(VecF32::load(h), VecF32::load(h + 16));
  }

 private:
  static constexpr short kLow = short(__is_same(T, bf16) ? 0xff80 : 0xfc00);  // -inf
  static __m512i flip(__m512i v) {
    return _mm512_xor_si512(v,
                            _mm512_and_si512(_mm512_srai_epi16(v, 15), _mm512_set1_epi16(0x7fff)));
  }
  void add(__m512i v) { most_ = _mm512_max_epi16(most_, flip(v)); }
  __m512i most_ = flip(_mm512_set1_epi16(kLow));
};
template <>
class PairMax<bf16> : public HalfMax<bf16> {};
template <>
class PairMax<f16> : public HalfMax<f16> {};

struct BF16Pairs {
  using Value = bf16;
  static constexpr bool any_offset = false;

  static void load(const bf16* p, VecF32& a, VecF32& b) { split(_mm512_loadu_si512(p), a, b); }
  static void load(const bf16* p, int n, VecF32& a, VecF32& b) {
    split(_mm512_mask_loadu_epi16(_mm512_set1_epi16(short(0xff80)), first(n), p), a, b);
  }
  static void store(bf16* p, VecF32 a, VecF32 b) { _mm512_storeu_si512(p, join(a, b)); }
  static void store(bf16* p, int n, VecF32 a, VecF32 b) {
    _mm512_mask_storeu_epi16(p, first(n), join(a, b));
  }
  static void stream(bf16* p, VecF32 a, VecF32 b) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), join(a, b));
  }

 private:
  static __mmask32 first(int n) { return __mmask32(_bzhi_u32(~0u, n)); }
  static void split(__m512i raw, VecF32& a, VecF32& b) {
    a = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000u))));
  }
  static __m512i join(VecF32 a, VecF32 b) {
    alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                    (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
  }
};

// A whole line of halves leaves in one store.
template <>
inline void Natural<f16>::stream(f16* p, VecF32 a, VecF32 b) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512i low = _mm512_castsi256_si512(_mm512_cvtps_ph(a.v, mode));
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p),
                      _mm512_inserti64x4(low, _mm512_cvtps_ph(b.v, mode), 1));
}
template <>
inline void Natural<bf16>::stream(bf16* p, VecF32 a, VecF32 b) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}
#else
using BF16Pairs = Natural<bf16>;
#endif

}  // namespace
}  // namespace fastops::cpu
