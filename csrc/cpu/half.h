// Storage types of the 16-bit formats and their scalar conversions (round to nearest even, NaN
// stays NaN). Constants and tails use these; whole vectors convert in simd_*.h.
#pragma once

#include <cstdint>

namespace fastops::cpu {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

namespace {

inline float bits_to_float(uint32_t u) { return __builtin_bit_cast(float, u); }
inline uint32_t float_to_bits(float f) { return __builtin_bit_cast(uint32_t, f); }

inline float to_float(bf16 h) { return bits_to_float(uint32_t(h.bits) << 16); }

// Shift the 15 value bits into place and repair the exponent by a multiplication, which also
// normalises denormals; all-ones exponents need the rest of their exponent bits.
inline float to_float(f16 h) {
  const uint32_t value = uint32_t(h.bits & 0x7fff) << 13;
  float f = bits_to_float(value) * 0x1p112f;
  if (value >= 0x0f800000u) f = bits_to_float(value | 0x7f800000u);
  return bits_to_float(float_to_bits(f) | uint32_t(h.bits & 0x8000) << 16);
}

inline bf16 to_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t(u >> 16 | 0x40)};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

// Adding a power of two puts the half's last bit at the float's last bit, so that the FPU rounds.
inline f16 to_f16(float f) {
  const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 rounds to infinity
  if (magnitude < 0x38800000u) {                                   // below 2^-14: denormal halves
    const float aligned = bits_to_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_to_bits(aligned) - 0x3f000000u))};
  }
  return {uint16_t(sign | (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}

}  // namespace
}  // namespace fastops::cpu
