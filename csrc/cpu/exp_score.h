// Exponentials of scores whose maximum is not known yet.
//
// Unlike those of exp.h their error does not grow with d but for that of log2 e, one base for all:
// ratios of such powers are as exact as powers of the difference.
#pragma once

#include "cpu/exp.h"

namespace fastops::cpu {
namespace {

// e^d, below the normal numbers 0.
inline VecF32 exp_score(VecF32 d) {
  if constexpr (!VecF32::exact_fma) return exp(d);
  const VecF32 log2e(kLog2eF), n = round(d * log2e);
  return scale2_or_zero(exp2_fraction<5, true>(fnma(d, log2e, n)), n);
}
inline VecF64 exp_score(VecF64 d) { return exp(d); }

// The same as a term of a sum: what is below 2^-124 may be that. For d up to 87, or NaN from
// infinity and NaN.
#ifdef FASTOPS_AVX512
// 2^(i / 32) from a table, the rest by two terms of its series: 5 products (one a clock on Zen 4)
// where exp_score takes 8 products and comparisons. Relative error 1.5e-7; of 0 exactly 1.
inline VecF32 exp_term(VecF32 d) {
  struct Table {
    alignas(64) int32_t bits[32];  // of 2^(i / 32), less what i adds to them as an exponent
    constexpr Table() : bits() {
      double power = 1;
      for (int i = 0; i < 32; ++i, power *= 1.0218971486541166782)
        bits[i] = __builtin_bit_cast(int32_t, float(power)) - (i << 18);
    }
  };
  static constexpr Table table;
  constexpr double step = 0.69314718055994530942 / 32, half = step / 2;
  // Within 0.5 * step the first coefficient balances the cubic term that is left out.
  const VecF32 first(float(step * (1 + half * half / 8))), second(float(step * half));
  const VecF32 steps(32 * kLog2eF), shifter(0x1.8p23f);  // what is added to it ends as an integer
  d = max(VecF32(-86.f), d);
  const VecF32 t = fma(d, steps, shifter);
  const VecF32 f = _mm512_fmsub_ps(d.v, steps.v, (t - shifter).v);
  const __m512i i = _mm512_castps_si512(t.v);
  const __m512i fraction = _mm512_permutex2var_epi32(_mm512_load_si512(table.bits), i,
                                                     _mm512_load_si512(table.bits + 16));
  const VecF32 power = _mm512_castsi512_ps(_mm512_add_epi32(fraction, _mm512_slli_epi32(i, 18)));
  return fma(power, f * fma(f, second, first), power);
}
#else
inline VecF32 exp_term(VecF32 d) { return exp_score(d); }
#endif
inline VecF64 exp_term(VecF64 d) { return exp(d); }

}  // namespace
}  // namespace fastops::cpu
