// bf16 activations as pairs.
#pragma once

#include "cpu/transpose.h"
#include "nm/cpu/activations.h"
#include "nm/cpu/packing.h"

#ifdef FASTOPS_AVX512
namespace fastops::nm::cpu {
namespace {

// At most VecF32::size rows as [pair][pitch], a float being two bf16: every pair that two kept of a
// group of four can meet, or neighbours. Zeros in lanes from `rows` on and after an odd feature.
inline void pack_pair_block(const Rows& x, int64_t row, int64_t rows, int64_t pitch,
                            Pairing pairing, float* to) {
  constexpr int kLanes = VecF32::size, kInputs = 2 * kLanes;
  constexpr int64_t kAhead = 128;  // as many streams as rows are too many for hardware
  const int64_t stride = x.feature_stride;
  const bf16* from[kLanes];
  for (int i = 0; i < kLanes; ++i)
    from[i] = i < rows ? static_cast<const bf16*>(x.data) + x.offset(row + i) : nullptr;
  for (int64_t f = 0; f < x.features; f += kInputs) {
    const int n = int(x.features - f < kInputs ? x.features - f : kInputs);
    VecF32 square[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      square[i] = VecF32(0.f);
      if (!from[i]) continue;
      if (stride == 1) {
        square[i].v = (__m512)_mm512_maskz_loadu_epi16(_bzhi_u32(~0u, unsigned(n)), from[i] + f);
        if (f + kAhead < x.features) __builtin_prefetch(from[i] + f + kAhead);
      } else {
        alignas(64) bf16 lane[kInputs] = {};
        for (int j = 0; j < n; ++j) lane[j] = from[i][(f + j) * stride];
        square[i].v = (__m512)_mm512_load_si512(lane);
      }
    }
    fastops::cpu::transpose(square);
    if (pairing == Pairing::neighbours) {
      for (int i = 0; i < (n + 1) / 2; ++i, to += pitch) square[i].store(to);
      continue;
    }
    for (int g = 0; g < n / 4; ++g, to += kPairsOfFour * pitch) {
      constexpr __mmask32 kSecond = 0xAAAAAAAA;
      const auto a = (__m512i)square[2 * g].v, b = (__m512i)square[2 * g + 1].v;  // 0 1, 2 3
      const __m512i a_down = _mm512_srli_epi32(a, 16), b_up = _mm512_slli_epi32(b, 16);
      const __m512i pairs[kPairsOfFour] = {a,
                                           _mm512_mask_blend_epi16(kSecond, a, b_up),
                                           _mm512_mask_blend_epi16(kSecond, a, b),
                                           _mm512_or_si512(a_down, b_up),
                                           _mm512_mask_blend_epi16(kSecond, a_down, b),
                                           b};
      for (int i = 0; i < kPairsOfFour; ++i) _mm512_storeu_si512(to + i * pitch, pairs[i]);
    }
  }
}

}  // namespace
}  // namespace fastops::nm::cpu
#endif
