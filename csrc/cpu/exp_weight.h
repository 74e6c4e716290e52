// Exponentials of scores relative to their maximum, and the rounding mode they are fastest in.
#pragma once

#include "cpu/exp.h"

namespace fastops::cpu {
namespace {

// 2^t for t <= 127 where t is mostly negative, as the weights of attention are. On AVX-512 the
// fraction is taken downwards, which the hardware does for nothing, and results are flushed only
// within a FlushDenormals. Relative error: degree 3 8.6e-5, degree 6 6.3e-8; of 0 exactly 1.
template <int Degree>
inline VecF32 exp2_weight(VecF32 t) {
#ifdef FASTOPS_AVX512
  static_assert(Degree == 3 || Degree == 6);
  const VecF32 r = _mm512_reduce_ps(t.v, 9);  // t - floor(t)
  VecF32 p;
  if constexpr (Degree == 3) {
    p = fma(r, VecF32(0.07706703990697861f), VecF32(0.22764499485492706f));
    p = fma(r, p, VecF32(0.6951167583465576f));
  } else {
    p = fma(r, VecF32(0.0002161808661185205f), VecF32(0.001246652682311833f));
    p = fma(r, p, VecF32(0.009675565175712109f));
    p = fma(r, p, VecF32(0.05548524484038353f));
    p = fma(r, p, VecF32(0.2402293086051941f));
    p = fma(r, p, VecF32(0.6931470632553101f));
  }
  return _mm512_scalef_ps(fma(r, p, VecF32(1.f)).v, t.v);
#else
  return exp2<Degree == 3 ? 3 : 5>(t);
#endif
}

// In its scope results of this thread that would not be normal numbers are 0, at no cost.
class FlushDenormals {
#ifdef FASTOPS_AVX512
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  unsigned before_;
#else
 public:
  FlushDenormals() {}
#endif
};

}  // namespace
}  // namespace fastops::cpu
