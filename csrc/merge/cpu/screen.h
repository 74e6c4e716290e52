// Which scores of a match are worth computing: products of bf16 pairs, twice as fast as fp32, bound
// every score from above and below, and only destinations that may be a source's best are scored in
// fp32. Scores are the same chains of multiply-adds as without a screen, bit for bit.
//
// A source a and a normalised destination b that are rounded to a + a' and b + b' change their
// product by at most |a'| + |a + a'| |b'| (Cauchy-Schwarz); sums of C terms in fp32, here and
// there, add C 2^-22 |a|. What is below the greatest product by more than twice that is not the
// best. |a'| and the greatest |b'| are measured: half of what a bound of 2^-8 for every element
// would let through.
//
// Budget per destination and 32 sources: C clocks of vdpbf16ps against 2 C of fma; the buffer of
// products takes 128 bytes each way and 3 clocks; 16 scores cost 5 C clocks.
#pragma once

#include "cpu/pairs.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace fastops::merge::cpu::FASTOPS_ISA {
namespace {

using namespace fastops::cpu;

// No screen: for vectors without bf16 products. What has no body here is never called.
template <typename V>
struct Screen {
  static constexpr bool built = false;
  const typename V::Scalar *dst = nullptr, *src = nullptr;
  static int64_t bytes_each(int64_t) { return 1; }
  void lay(ScratchPieces&, int64_t, int64_t) {}
  void pack_destination(int64_t) {}
  template <int R>
  void pack_sources(const V (&)[R], V (&)[R]) {}
  template <int R, int D>
  void tile(int64_t, const char*, int64_t, V (&)[R]) const {}
  template <int R>
  bool score(int64_t, int64_t, const V (&)[R], const V (&)[R], V (&)[R], V (&)[R]) const {
    return false;
  }
};

#ifdef FASTOPS_AVX512
template <>
class Screen<VecF32> {
  static constexpr int L = VecF32::size;
  // About where one of so many has to be scored, a screen costs as much as it saves.
  static constexpr int64_t kShare = 20;

 public:
  static constexpr bool built = true;
  // What the caller has packed: destinations [destinations][channels], normalised, and one or two
  // vectors of sources [channels][R * L].
  const float *dst = nullptr, *src = nullptr;

  // Bytes per destination, of its bf16 pairs and its products.
  static int64_t bytes_each(int64_t channels) { return (channels + 1) / 2 * 4 + 2 * L * 4; }

  void lay(ScratchPieces& pieces, int64_t channels, int64_t destinations) {
    channels_ = channels;
    pairs_ = (channels + 1) / 2;
    dst_pairs_ = pieces.take<uint32_t>(destinations * pairs_);
    src_pairs_ = pieces.take<uint32_t>(pairs_ * 2 * L);
    products_ = pieces.take<float>(destinations * 2 * L);
    list_ = pieces.take<int32_t>(2 * L * (destinations / kShare + 2));
  }

  // Destinations are packed in ascending order, from 0.
  void pack_destination(int64_t j) {
    const float* from = dst + j * channels_;
    bf16* to = reinterpret_cast<bf16*>(dst_pairs_ + j * pairs_);
    VecF32 squares(0.f);
    for (int64_t c = 0; c < channels_; c += L) {
      const int left = int(channels_ - c < L ? channels_ - c : L);
      const VecF32 v = left == L ? VecF32::load(from + c) : VecF32::load(from + c, left);
      if (left == L) v.store(to + c);
      else v.store(to + c, (left + 1) / 2 * 2);  // a zero fills the last pair
      const VecF32 error = v - (left == L ? VecF32::load(to + c) : VecF32::load(to + c, left));
      squares = fma(error, error, squares);
    }
    const float square = hsum(squares);
    if (j == 0) dst_error_ = 0;
    if (square > dst_error_) dst_error_ = square;  // not NaN, which is nobody's best
  }

  // Gives by how much each lane's best may seem less than another destination.
  template <int R>
  void pack_sources(const VecF32 (&inverse)[R], VecF32 (&margin)[R]) {
    VecF32 squares[R];
    for (int r = 0; r < R; ++r) squares[r] = VecF32(0.f);
    for (int64_t p = 0; p < pairs_; ++p)
      for (int r = 0; r < R; ++r) {
        const float* column = src + (2 * p * R + r) * L;
        const VecF32 even = VecF32::load(column);
        const VecF32 odd = 2 * p + 1 < channels_ ? VecF32::load(column + R * L) : VecF32(0.f);
        bf16* to = reinterpret_cast<bf16*>(src_pairs_ + (p * R + r) * L);
        BF16Pairs::store(to, even, odd);
        VecF32 near_even, near_odd;
        BF16Pairs::load(to, near_even, near_odd);
        const VecF32 errors[2] = {even - near_even, odd - near_odd};
        for (VecF32 error : errors) squares[r] = fma(error, error, squares[r]);
      }
    const VecF32 dst_error(__builtin_sqrtf(dst_error_)), sums(0x1p-22f * float(channels_));
    const VecF32 twice(2 * 1.001f);  // and what the norms themselves are rounded by
    for (int r = 0; r < R; ++r) {
      const VecF32 error = _mm512_sqrt_ps(squares[r].v), norm = VecF32(1.f) / inverse[r];
      margin[r] = twice * (error + (norm + error) * dst_error + norm * sums);
    }
  }

  // Destinations [j, j + D): their products, and the greatest so far.
  template <int R, int D>
  void tile(int64_t j, const char* ahead, int64_t ahead_step, VecF32 (&most)[R]) const {
    const int64_t n = pairs_;
    const uint32_t *a = src_pairs_, *b = dst_pairs_ + j * n;
    __m512 sum[D][R];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[d][r] = _mm512_setzero_ps();
    for (int64_t p = 0; p < n; ++p, a += R * L) {
      prefetch(ahead + p * ahead_step);
      __m512i lanes[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) lanes[r] = _mm512_loadu_si512(a + r * L);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const __m512i each = _mm512_set1_epi32(int(b[d * n + p]));
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r)
          sum[d][r] = _mm512_dpbf16_ps(sum[d][r], (__m512bh)lanes[r], (__m512bh)each);
      }
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        _mm512_storeu_ps(products_ + ((j + d) * R + r) * L, sum[d][r]);
        most[r] = max(VecF32(sum[d][r]), most[r]);
      }
  }

  // Scores what may be the best, in ascending order, and keeps the greatest, the first among
  // equals. False, having done nothing, where that is too much. `count` lanes are sources.
  template <int R>
  bool score(int64_t destinations, int64_t count, const VecF32 (&most)[R],
             const VecF32 (&margin)[R], VecF32 (&best)[R], VecF32 (&index)[R]) const {
    const int64_t listed = find<R>(destinations, count, most, margin);
    if (listed < 0) return false;
    float greatest[R * L], where[R * L];
    for (int r = 0; r < R; ++r) {
      best[r].store(greatest + r * L);
      index[r].store(where + r * L);
    }
    for (int64_t at = 0; at < listed; at += L) {
      const int n = int(listed - at < L ? listed - at : L);
      float scores[L];
      score_some<R>(list_ + at, n, scores);
      for (int k = 0; k < n; ++k) {
        const int32_t lane = list_[at + k] % (R * L), j = list_[at + k] / (R * L);
        const bool wins = greatest[lane] < scores[k];  // selects: a branch would be guessed wrong
        greatest[lane] = wins ? scores[k] : greatest[lane];
        where[lane] = wins ? float(j) : where[lane];
      }
    }
    for (int r = 0; r < R; ++r) {
      best[r] = VecF32::load(greatest + r * L);
      index[r] = VecF32::load(where + r * L);
    }
    return true;
  }

 private:
  // Lists every destination and lane whose product comes near the lane's greatest; -1 where they
  // are too many.
  template <int R>
  int64_t find(int64_t destinations, int64_t count, const VecF32 (&most)[R],
               const VecF32 (&margin)[R]) const {
    __m512 least[R];
    __mmask16 valid[R];
    for (int r = 0; r < R; ++r) {
      least[r] = (most[r] - margin[r]).v;
      valid[r] = VecF32::first(int(count - r * L < L ? count - r * L : L));
    }
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const int64_t limit = 2 * L * (destinations / kShare);
    int64_t n = 0;
    for (int64_t j = 0; j < destinations; ++j) {
      __mmask16 near[R];
      uint32_t any = 0;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m512 product = _mm512_loadu_ps(products_ + (j * R + r) * L);
        near[r] = _mm512_mask_cmp_ps_mask(valid[r], product, least[r], _CMP_GE_OQ);
        any |= near[r];
      }
      if (any == 0) continue;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m512i entries = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(j * R + r) * L));
        _mm512_storeu_si512(list_ + n, _mm512_maskz_compress_epi32(near[r], entries));
        n += __builtin_popcount(near[r]);
      }
      if (n > limit) return -1;
    }
    return n;
  }

  // 16 scores at once: destinations are turned so that they lie in the lanes, sources permuted.
  template <int R>
  void score_some(const int32_t* listed, int n, float* scores) const {
    const float* rows[L];
    alignas(64) int32_t lane_of[L];
    for (int k = 0; k < L; ++k) {
      const int32_t entry = listed[k < n ? k : 0];
      rows[k] = dst + int64_t(entry / (R * L)) * channels_;
      lane_of[k] = entry % (R * L);
    }
    const __m512i lanes = _mm512_load_si512(lane_of);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < channels_; c += L) {
      const int left = int(channels_ - c < L ? channels_ - c : L);
      VecF32 b[L];
      for (int k = 0; k < L; ++k)
        b[k] = left == L ? VecF32::load(rows[k] + c) : VecF32::load(rows[k] + c, left);
      transpose(b);
      for (int k = 0; k < left; ++k) {
        const float* column = src + (c + k) * R * L;
        const __m512 a = R == 1 ? _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(column))
                                : _mm512_permutex2var_ps(_mm512_loadu_ps(column), lanes,
                                                         _mm512_loadu_ps(column + (R - 1) * L));
        sum = _mm512_fmadd_ps(a, b[k].v, sum);
      }
    }
    _mm512_storeu_ps(scores, sum);
  }

  int64_t channels_ = 0, pairs_ = 0;
  float dst_error_ = 0;  // of the destinations that are packed, the greatest, squared
  uint32_t *dst_pairs_ = nullptr, *src_pairs_ = nullptr;
  float* products_ = nullptr;  // [destinations][R * L]
  int32_t* list_ = nullptr;    // destination * R * L + lane
};
#endif

}  // namespace
}  // namespace fastops::merge::cpu::FASTOPS_ISA
