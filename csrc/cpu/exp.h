// Exponentials on vectors. Relative error, measured over the whole range: exp2 (degree 5) and
// exp of VecF32 below 2 ulp, exp of VecF64 below 1 ulp.
//
// Results that would not be normal numbers are 0 (that of -inf too), NaN gives NaN.
#pragma once

#include "cpu/simd.h"

namespace fastops::cpu {
namespace {

inline constexpr double kLog2e = 1.4426950408889634074;
inline constexpr float kLog2eF = float(kLog2e);

// 2^r for |r| <= 1/2, minimax in relative error with p(0) = 1 exactly. Degree 3: 1.5e-4,
// degree 4: 3.4e-6, degree 5: 1.5e-7.
// 2^-r if `negative`. Times `factor`, which costs a loop nothing: it is in the coefficients.
template <int Degree, bool negative = false>
inline VecF32 exp2_fraction(VecF32 r, float factor = 1.f) {
  static_assert(Degree >= 3 && Degree <= 5);
  const auto next = [r, factor](VecF32 p, float c) {
    const VecF32 term(c * factor);
    return negative ? fnma(r, p, term) : fma(r, p, term);
  };
  if constexpr (Degree == 3) {
    VecF32 p = next(VecF32(0.0551743455788f * factor), 0.242638180988f);
    p = next(p, 0.693312153377f);
    return next(p, 1.f);
  } else if constexpr (Degree == 4) {
    VecF32 p = next(VecF32(0.00956991689501f * factor), 0.0559195471029f);
    p = next(p, 0.240247795521f);
    p = next(p, 0.693122131969f);
    return next(p, 1.f);
  } else {
    VecF32 p = next(VecF32(0.00132762387502f * factor), 0.00967576902031f);
    p = next(p, 0.05550715305f);
    p = next(p, 0.240221137667f);
    p = next(p, 0.693146914238f);
    return next(p, 1.f);
  }
}

// factor * 2^t for t <= 127. Of t = -inf the fraction is NaN, and 2^-inf is 0.
template <int Degree = 5>
inline VecF32 exp2(VecF32 t, float factor = 1.f) {
  const VecF32 n = round(t);
  return scale2_or_zero(exp2_fraction<Degree>(t - n, factor), n);
}

// e^x. ln 2 in two parts, the first so short that n times it is exact: the relative error stays
// flat down to the smallest results.
inline VecF32 exp(VecF32 x) {
  x = min(VecF32(90.f), max(VecF32(-105.f), x));
  const VecF32 n = round(x * VecF32(kLog2eF));
  VecF32 r = fnma(n, VecF32(0.693359375f), x);
  r = fnma(n, VecF32(-2.12194440e-4f), r);
  VecF32 p = fma(r, VecF32(0.00829750931f), VecF32(0.0419163683f));
  p = fma(r, p, VecF32(0.166675808f));
  p = fma(r, p, VecF32(0.499988825f));
  p = fma(r, p, VecF32(0.999999616f));
  return scale2(fma(r, p, VecF32(1.f)), n);
}

inline VecF64 exp(VecF64 x) {
  x = min(VecF64(710.0), max(VecF64(-750.0), x));
  const VecF64 n = round(x * VecF64(kLog2e));
  VecF64 r = fnma(n, VecF64(0x1.62e42fefap-1), x);  // ln 2 in two parts, the first of 38 bits
  r = fnma(n, VecF64(0x1.cf79abc9e3b3ap-40), r);
  constexpr double c[] = {2.4994187618417379287e-8, 2.7632442612801310994e-7,
                          2.7557623751225506488e-6, 2.4801486120042730091e-5,
                          1.984126943021671806e-4,  1.3888888951596330483e-3,
                          8.3333333335610856141e-3, 4.1666666666491382745e-2,
                          0.16666666666666163719,   0.50000000000000178763};
  VecF64 p(c[0]);
  for (int i = 1; i < 10; ++i) p = fma(p, r, VecF64(c[i]));
  // 1 + (r + r^2 p), not 1 + r (1 + r p): without a fused multiply-add half the rounding error.
  return scale2(fma(r * r, p, r) + VecF64(1.0), n);
}

}  // namespace
}  // namespace fastops::cpu
