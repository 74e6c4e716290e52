// What happens to a sum on its way out: bias, activation, rounding.
#pragma once

#include "cpu/exp.h"
#include "nm/cpu/activations.h"

namespace fastops::nm::cpu {
namespace {

// erf to 4 ulp: a rational approximation in x^2 on [-4, 4], beyond which erf is +-1 in fp32.
inline VecF32 erf(VecF32 x) {
  x = min(VecF32(4.f), max(VecF32(-4.f), x));
  const VecF32 s = x * x;
  VecF32 p = fma(s, VecF32(-2.72614225801306e-10f), VecF32(2.77068142495902e-08f));
  p = fma(s, p, VecF32(-2.10102402082508e-06f));
  p = fma(s, p, VecF32(-5.69250639462346e-05f));
  p = fma(s, p, VecF32(-7.34990630326855e-04f));
  p = fma(s, p, VecF32(-2.95459980854025e-03f));
  p = fma(s, p, VecF32(-1.60960333262415e-02f));
  VecF32 q = fma(s, VecF32(-1.45660718464996e-05f), VecF32(-2.13374055278905e-04f));
  q = fma(s, q, VecF32(-1.68282697438203e-03f));
  q = fma(s, q, VecF32(-7.37332916720468e-03f));
  q = fma(s, q, VecF32(-1.42647390514189e-02f));
  return x * p / q;
}

inline VecF32 activate(Activation activation, VecF32 v) {
  switch (activation) {
    case Activation::relu: return max(VecF32(0.f), v);  // NaN stays NaN
    case Activation::gelu: return VecF32(0.5f) * v * (VecF32(1.f) + erf(v * VecF32(0.70710678f)));
    case Activation::silu: return v / (VecF32(1.f) + fastops::cpu::exp(VecF32(0.f) - v));
    default: return v;
  }
}

// Finishes outputs [output, output + count) of a row; count <= VecF32::size.
template <typename T>
class Epilogue {
 public:
  explicit Epilogue(const MatmulParams& p)
      : y_(static_cast<T*>(p.y)),
        bias_(static_cast<const T*>(p.bias)),
        outputs_(p.outputs()),
        activation_(p.activation) {}

  void store(int64_t row, int64_t output, int count, VecF32 sum) const {
    sum = finished(output, count, sum);
    T* to = y_ + row * outputs_ + output;
    if (count == VecF32::size) sum.store(to);
    else sum.store(to, count);
  }

#ifdef FASTOPS_AVX512
  // The same for count <= 2 * VecF32::size outputs of bf16, in one store.
  void store_pair(int64_t row, int64_t output, int count, VecF32 low, VecF32 high) const {
    constexpr int kLanes = VecF32::size;
    low = finished(output, count < kLanes ? count : kLanes, low);
    if (count > kLanes) high = finished(output + kLanes, count - kLanes, high);
    _mm512_mask_storeu_epi16(y_ + row * outputs_ + output,
                             __mmask32(_bzhi_u32(~0u, unsigned(count))),
                             (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
  }
#endif

 private:
  VecF32 finished(int64_t output, int count, VecF32 sum) const {
    if (bias_) sum = sum + VecF32::load(bias_ + output, count);
    return activation_ == Activation::none ? sum : activate(activation_, sum);
  }

  T* y_;
  const T* bias_;
  int64_t outputs_;
  Activation activation_;
};

}  // namespace
}  // namespace fastops::nm::cpu
