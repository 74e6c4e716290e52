// VecF32 and VecF64 on the compiler's own 16-byte vectors (SSE2 on x86, NEON on aarch64). See
// simd.h for the contract.
#pragma once

#include <cstdint>

#include "cpu/half.h"

namespace fastops::cpu {
namespace {

inline float widen(float f) { return f; }
inline double widen(double f) { return f; }
inline float widen(f16 h) { return to_float(h); }
inline float widen(bf16 h) { return to_float(h); }
inline void narrow(float* p, double f) { *p = float(f); }
inline void narrow(double* p, double f) { *p = f; }
inline void narrow(f16* p, double f) { *p = to_f16(float(f)); }
inline void narrow(bf16* p, double f) { *p = to_bf16(float(f)); }

template <typename S>
struct Lanes;
template <>
struct Lanes<float> {
  typedef int32_t Int;
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Bits __attribute__((vector_size(16)));
};
template <>
struct Lanes<double> {
  typedef int64_t Int;
  typedef double Reg __attribute__((vector_size(16)));
  typedef int64_t Bits __attribute__((vector_size(16)));
};

template <typename S>
struct VecPortable {
  using Scalar = S;
  using I = typename Lanes<S>::Int;
  using Reg = typename Lanes<S>::Reg;
  using Bits = typename Lanes<S>::Bits;
  struct Mask {
    Bits v;
  };
  static constexpr int size = 16 / sizeof(S);
  static constexpr bool exact_fma = false;
  Reg v;

  VecPortable() = default;
  VecPortable(Reg r) : v(r) {}
  explicit VecPortable(S f) : v(Reg{} + f) {}

  static Mask first(int n) {
    Mask m;
    for (int i = 0; i < size; ++i) m.v[i] = i < n ? I(-1) : I(0);
    return m;
  }

  // One byte per lane, not zero = true.
  static Mask load_mask(const uint8_t* p, int n = size) {
    Mask m{};
    for (int i = 0; i < n; ++i) m.v[i] = p[i] ? I(-1) : I(0);
    return m;
  }

  static VecPortable load(const S* p) {
    VecPortable r;
    __builtin_memcpy(&r.v, p, sizeof(Reg));
    return r;
  }
  template <typename T>
  static VecPortable load(const T* p, int n = size) {
    Reg r{};
    for (int i = 0; i < n; ++i) r[i] = S(widen(p[i]));
    return r;
  }

  void store(S* p) const { __builtin_memcpy(p, &v, sizeof(Reg)); }
  template <typename T>
  void store(T* p, int n = size) const {
    for (int i = 0; i < n; ++i) narrow(p + i, v[i]);
  }
  template <typename T>
  void stream(T* p) const {
    store(p);
  }

  friend VecPortable operator+(VecPortable a, VecPortable b) { return a.v + b.v; }
  friend VecPortable operator-(VecPortable a, VecPortable b) { return a.v - b.v; }
  friend VecPortable operator*(VecPortable a, VecPortable b) { return a.v * b.v; }
  friend VecPortable operator/(VecPortable a, VecPortable b) { return a.v / b.v; }
  friend VecPortable fma(VecPortable a, VecPortable b, VecPortable c) { return a.v * b.v + c.v; }
  friend VecPortable fnma(VecPortable a, VecPortable b, VecPortable c) { return c.v - a.v * b.v; }
  friend VecPortable max(VecPortable a, VecPortable b) { return a.v > b.v ? a.v : b.v; }
  friend VecPortable min(VecPortable a, VecPortable b) { return a.v < b.v ? a.v : b.v; }
  friend Mask operator<(VecPortable a, VecPortable b) { return {(Bits)(a.v < b.v)}; }
  friend Mask operator==(VecPortable a, VecPortable b) { return {(Bits)(a.v == b.v)}; }
  friend Mask is_nan(VecPortable a) { return {(Bits)(a.v != a.v)}; }
  friend VecPortable select(Mask m, VecPortable a, VecPortable b) { return m.v ? a.v : b.v; }
  friend bool any(Mask m) {
    I all = 0;
    for (int i = 0; i < size; ++i) all |= m.v[i];
    return all != 0;
  }
  friend Mask both(Mask a, Mask b) { return {a.v & b.v}; }
  friend S hsum(VecPortable a) {
    S sum = a.v[0];
    for (int i = 1; i < size; ++i) sum += a.v[i];
    return sum;
  }
  friend S hmax(VecPortable a) {
    S most = a.v[0];
    for (int i = 1; i < size; ++i) most = a.v[i] > most ? a.v[i] : most;
    return most;
  }

  // Adding 1.5 * 2^(mantissa bits) leaves no fraction bits; values that large are whole already.
  friend VecPortable round(VecPortable a) {
    constexpr S magic = sizeof(S) == 4 ? S(0x1.8p23) : S(0x1.8p52);
    constexpr S whole = sizeof(S) == 4 ? S(0x1p22) : S(0x1p51);
    const Reg rounded = (a.v + magic) - magic;
    return a.v > -whole && a.v < whole ? rounded : a.v;
  }
  // a * 2^n; n outside the normal exponents is flushed to 0 below and to infinity above.
  friend VecPortable scale2(VecPortable a, VecPortable n) {
    constexpr int bias = sizeof(S) == 4 ? 127 : 1023, bits = sizeof(S) == 4 ? 23 : 52;
    const Reg low = Reg{} - S(bias), high = Reg{} + S(bias + 1);
    Reg limited = n.v > low ? n.v : low;
    limited = limited < high ? limited : high;
    // A NaN in n compares false above and ends as -bias: a * 0, and a is NaN already.
    const Bits power = (__builtin_convertvector(limited, Bits) + bias) << bits;
    return a.v * (Reg)power;
  }
  friend VecPortable scale2_or_zero(VecPortable a, VecPortable n) {
    const Reg low = Reg{} - S(sizeof(S) == 4 ? 127 : 1023);
    return n.v <= low ? Reg{} : scale2(a, n).v;
  }
};

using VecF32 = VecPortable<float>;
using VecF64 = VecPortable<double>;

inline void store_fence() {}

// lane r of the result = the reduction over the lanes of rows[r].
template <typename Op>
inline VecF32 transpose_reduce(const VecF32* rows, Op op) {
  const auto column = [rows](int i) {
    return VecF32(VecF32::Reg{rows[0].v[i], rows[1].v[i], rows[2].v[i], rows[3].v[i]});
  };
  return op(op(column(0), column(1)), op(column(2), column(3)));
}

}  // namespace
}  // namespace fastops::cpu
