// The register tiles of the attention kernels. One side of every product lies in the lanes, R
// vectors wide; the other is broadcast from memory as it lies there. A sum is never taken across
// lanes.
#pragma once

#include "attention/cpu/ahead.h"
#include "attention/cpu/plan.h"
#include "cpu/lanes.h"
#include "cpu/transpose.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

using namespace fastops::cpu;

inline constexpr int L = VecF32::size;
inline constexpr int64_t kMostChannels = 256;
inline constexpr int64_t kMostUnits = 8;  // of 32 rows in a chunk
inline constexpr float kInf = __builtin_inff();

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What 4 bytes of a factor are, and how many rows of weights a sum over rows takes at once.
struct Singles {
  static constexpr bool paired = false, stored = false;
  static constexpr int pad = 1;
  static constexpr int chunk = 64;  // rows of scores at a time, of the forward
  static int64_t depth(int64_t channels) { return channels; }
  static int64_t unit(int64_t) { return 1; }
  static VecF32 multiply(VecF32 lanes, VecF32 each, VecF32 sum) { return fma(lanes, each, sum); }
};
#ifdef FASTOPS_AVX512
struct Pairs {
  static constexpr bool paired = true, stored = false;
  static constexpr int pad = 2;
  static constexpr int chunk = 128;
  static int64_t depth(int64_t channels) { return ceil_div(channels, 2); }
  static int64_t unit(int64_t) { return 2; }
  static VecF32 multiply(VecF32 lanes, VecF32 each, VecF32 sum) {
    return _mm512_dpbf16_ps(sum.v, (__m512bh)lanes.v, (__m512bh)each.v);
  }
};
#endif

// sum[n][r] += over k < count: lanes[k][r] * each(n, k), where each(n, k) is the 4 bytes at
// each + n * row + k * step. A step fetches a line ahead.
template <typename F, int N, int R>
inline void multiply(const char* each, int64_t row, int64_t step, const float* lanes, int64_t count,
                     VecF32 (&sum)[N][R], auto& lines) {
  for (int64_t k = 0; k < count; ++k, each += step, lanes += R * L) {
    lines.fetch();
    VecF32 b[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) b[r] = VecF32::load(lanes + r * L);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      float bits;
      __builtin_memcpy(&bits, each + n * row, 4);
      const VecF32 a(bits);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[n][r] = F::multiply(b[r], a, sum[n][r]);
    }
  }
}

template <int N, int R>
inline void clear(VecF32 (&sum)[N][R]) {
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[n][r] = VecF32(0.f);
}

// Rows of sums at a time: with the lanes and a broadcast they fill the registers. One vector of
// lanes is bound by the broadcasts either way.
template <int R>
inline constexpr int kRows = L == 16 ? (R == 1 ? 16 : 12) : 12 / R;

// tile<N>() until `count` rows are done; 64 are 4 times 12 and 2 times 8, with no small tile.
template <int R, typename Tile>
inline void tiles(int64_t count, const Tile& tile) {
  constexpr int most = kRows<R>;
  int64_t left = count;
  for (; left >= most && !(most == 12 && left == 16); left -= most)
    tile.template operator()<most>();
  if constexpr (most > 8)
    for (; left >= 8; left -= 8) tile.template operator()<8>();
  for (; left >= 4; left -= 4) tile.template operator()<4>();
  for (; left > 0; --left) tile.template operator()<1>();
}

// Some rows of a block: `count` of them from `first` on, whose lanes start at row `at` of the
// chunk. in_block: where `first` is in its block; unit: which unit of rows of a sum's factor it is.
struct Segment {
  int64_t first, count, at, in_block, unit;
  const uint32_t* bits;  // nullptr: all elements are kept
};

// What dots() leaves of its sums as they are.
struct AsIs {
  VecF32 operator()(int64_t, int, VecF32 sum) const { return sum; }
};

// to[n][r] = done(n, r, sum) for every n < count, where sum is the product of `lanes`, `depth`
// vectors long, with row n of `each`, rows `step` bytes apart. `to` has room for F::pad rows more;
// its rows are `to_step` floats apart.
template <typename F, int R, typename Done, typename A = NoLines>
  requires(!F::stored)
inline void dots(const char* each, int64_t step, int64_t count, const float* lanes, int64_t depth,
                 float* to, const Done& done, int64_t to_step = R * L, A&& ahead = {}) {
  int64_t n = 0;
  const auto tile = [&]<int N>() {
    VecF32 sum[N][R];
    clear(sum);
    fetching(ahead, [&](auto& lines) {
      multiply<F, N, R>(each + n * step, step, 4, lanes, depth, sum, lines);
    });
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) done(n + i, r, sum[i][r]).store(to + (n + i) * to_step + r * L);
    n += N;
  };
  tiles<R>(count, tile);
}

// done(n, sums) for every channel n: the sum over the rows of the segments of lanes[row] times
// channel n of the row of `each`.
template <typename F, int R, typename Done, typename A = NoLines>
inline void sums(const char* each, int64_t step, const Segment* segments, int64_t num_segments,
                 const float* lanes, int64_t channels, const Done& done, A&& ahead = {}) {
  int64_t n = 0;
  const auto tile = [&]<int N>() {
    VecF32 sum[N][R];
    clear(sum);
    fetching(ahead, [&](auto& lines) {
      for (int64_t i = 0; i < num_segments; ++i) {
        const Segment& s = segments[i];
        multiply<F, N, R>(each + s.unit * step + 4 * n, 4, step, lanes + s.at / F::pad * (R * L),
                          ceil_div(s.count, F::pad), sum, lines);
      }
    });
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) done(n + i, sum[i]);
    n += N;
  };
  tiles<R>(channels, tile);
}

#ifdef __AMX_BF16__
// The same products on matrix registers: 32 rows by 32 lanes of sums, 32 factors at a time. The
// broadcast side is read as rows of 64 bytes; for sums over rows, 32 rows (or 16, then zeros) lie
// turned, channel by channel.
struct Matrix {
  static constexpr bool paired = true, stored = true;  // stored: sums reach no vector register
  static constexpr int pad = 32;
  static constexpr int chunk = 256;
  static int64_t depth(int64_t channels) { return round_up(channels, 32) / 2; }
  static int64_t unit(int64_t block) { return at_most(block, 32); }
};

// The matrix registers of a thread, from here to the end of the scope: 0 to 3 sums, 4 and 5 the
// broadcast side, 6 and 7 the lanes.
class MatrixRegisters {
 public:
  MatrixRegisters() { _tile_loadconfig(&config_); }
  ~MatrixRegisters() { _tile_release(); }

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config_;
};

// Sums of 16 * N rows; step(k) of `count` gives the addresses of a factor's rows and of the lanes.
template <int N, int R, typename Step>
inline void multiply_matrix(int64_t count, const Step& step, float* sums, auto& ahead) {
  constexpr int kLinesEach = 24;  // of a step's 64 clocks
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  fetching(ahead, [&](auto& lines) {
    for (int64_t k = 0; k < count; ++k) {
      const auto at = step(k);
      for (int i = 0; i < kLinesEach; ++i) lines.fetch();
      _tile_loadd(4, at.first, at.row_bytes);
      _tile_loadd(6, at.lanes, R * 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (R == 2) {
        _tile_loadd(7, at.lanes + 16, R * 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (N == 2) {
        _tile_loadd(5, at.second, at.row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (R == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
  });
  _tile_stored(0, sums, R * 64);
  if constexpr (R == 2) _tile_stored(1, sums + 16, R * 64);
  if constexpr (N == 2) {
    _tile_stored(2, sums + 16 * R * 16, R * 64);
    if constexpr (R == 2) _tile_stored(3, sums + 16 * R * 16 + 16, R * 64);
  }
}

struct MatrixStep {
  const char *first, *second;
  int64_t row_bytes;
  const float* lanes;
};

template <typename F, int R, typename Done, typename A = NoLines>
  requires __is_same
(F, Matrix) inline void dots(const char* each, int64_t step, int64_t count, const float* lanes,
                             int64_t depth, float* to, const Done& done, int64_t = R * L,
                             A&& ahead = {}) {
  for (int64_t n = 0; n < count; n += 32) {
    const int64_t rows = at_most(count - n, 32);
    const char* first = each + n * step;
    int64_t row_bytes = step;
    alignas(64) char tail[32][2 * kMostChannels];
    if (rows % 16) {  // what follows may not be ours to read
      for (int64_t i = 0; i < rows; ++i)
        __builtin_memcpy(tail[i], first + i * step, size_t(depth) * 4);
      first = tail[0];
      row_bytes = 2 * kMostChannels;
    }
    const auto at = [&](int64_t k) {
      return MatrixStep{first + 64 * k, first + 16 * row_bytes + 64 * k, row_bytes,
                        lanes + k * 16 * R * L};
    };
    if (rows > 16) multiply_matrix<2, R>(depth / 16, at, to + n * R * L, ahead);
    else multiply_matrix<1, R>(depth / 16, at, to + n * R * L, ahead);
  }
  if constexpr (!__is_same(Done, AsIs)) {
    for (int64_t n = 0; n < count; ++n)
      for (int r = 0; r < R; ++r) {
        float* row = to + (n * R + r) * L;
        done(n, r, VecF32::load(row)).store(row);
      }
  }
}

template <typename F, int R, typename Done, typename A = NoLines>
  requires __is_same
(F, Matrix) inline void sums(const char* each, int64_t step, const Segment* segments,
                             int64_t num_segments, const float* lanes, int64_t channels,
                             const Done& done, A&& ahead = {}) {
  alignas(64) float sum_rows[32 * R * L];
  MatrixStep steps[kMostUnits];
  int64_t count = 0;
  for (int64_t i = 0; i < num_segments; ++i)
    for (int64_t row = 0; row < segments[i].count; row += 32, ++count) {
      const char* first = each + (segments[i].unit + row / 32) * step;
      steps[count] = {first, first + 16 * 64, 64, lanes + (segments[i].at + row) / 2 * R * L};
    }
  for (int64_t n = 0; n < channels; n += 32) {
    const auto at = [&](int64_t k) {
      return MatrixStep{steps[k].first + n * 64, steps[k].second + n * 64, 64, steps[k].lanes};
    };
    if (channels - n > 16) multiply_matrix<2, R>(count, at, sum_rows, ahead);
    else multiply_matrix<1, R>(count, at, sum_rows, ahead);
    for (int64_t i = 0; i < at_most(channels - n, 32); ++i) {
      VecF32 sum[R];
      for (int r = 0; r < R; ++r) sum[r] = VecF32::load(sum_rows + (i * R + r) * L);
      done(n + i, sum);
    }
  }
}
#endif

// ---- between rows in memory and lanes -----------------------------------------------------------

// The first n values of a row of any dtype as floats.
inline void widen_row(const void* from, DType dtype, int64_t n, float* to) {
  const auto copy = [&](const auto* row) {
    int64_t c = 0;
    for (; c + L <= n; c += L) VecF32::load(row + c).store(to + c);
    if (c < n) VecF32::load(row + c, int(n - c)).store(to + c, int(n - c));
  };
  if (dtype == DType::f16) return copy(static_cast<const f16*>(from));
  if (dtype == DType::bf16) return copy(static_cast<const bf16*>(from));
  copy(static_cast<const float*>(from));
}

// `to`[channel][R * L] = R * L rows from `from` on, of which `count` exist; zeros beyond. Channels
// are 4 bytes: floats, or pairs of bf16.
template <typename F, int R>
inline void into_lanes(const void* from, int64_t row_bytes, int64_t count, DType dtype,
                       int64_t channels, float* to) {
  alignas(64) float staged[L][kMostChannels];
  const int64_t depth = ceil_div(channels, F::paired ? 2 : 1);
  const bool direct = dtype == DType::f32 || (F::paired && channels % 2 == 0);
  for (int r = 0; r < R; ++r) {
    const float* rows[L];
    for (int i = 0; i < L; ++i) {
      const int64_t n = r * L + i;
      const char* row = static_cast<const char*>(from) + (n < count ? n : 0) * row_bytes;
      rows[i] = direct ? reinterpret_cast<const float*>(row) : staged[i];
      if (direct || n >= count) continue;
      if (!F::paired) {
        widen_row(row, dtype, channels, staged[i]);
      } else {
        staged[i][depth - 1] = 0;
        __builtin_memcpy(staged[i], row, size_t(channels) * 2);
      }
    }
    for (int64_t c = 0; c < depth; c += L) {
      const int lanes = int(at_most(depth - c, L));
      VecF32 square[L];
      for (int i = 0; i < L; ++i) {
        square[i] = VecF32(0.f);
        if (r * L + i < count)
          square[i] = lanes == L ? VecF32::load(rows[i] + c) : VecF32::load(rows[i] + c, lanes);
      }
      transpose(square);
      for (int k = 0; k < lanes; ++k) square[k].store(to + (c + k) * (R * L) + r * L);
    }
  }
  for (int64_t i = depth * R * L; i < F::depth(channels) * R * L; i += L) VecF32(0.f).store(to + i);
}

// The reverse: rows of any dtype from lanes, each lane times `factor`.
template <int R>
inline void from_lanes(const float* from, int64_t channels, const VecF32 (&factor)[R], void* to,
                       int64_t row_bytes, int64_t count, DType dtype) {
  for (int r = 0; r < R && r * L < count; ++r) {
    char* first = static_cast<char*>(to) + r * L * row_bytes;
    for (int64_t c = 0; c < channels; c += L) {
      const int lanes = int(at_most(channels - c, L));
      VecF32 square[L];
      for (int k = 0; k < L; ++k)
        square[k] =
            k < lanes ? VecF32::load(from + (c + k) * (R * L) + r * L) * factor[r] : VecF32(0.f);
      transpose(square);
      for (int i = 0; i < L && r * L + i < count; ++i) {
        char* row = first + i * row_bytes;
        const auto store = [&](auto* p) {
          if (lanes == L) square[i].store(p + c);
          else square[i].store(p + c, lanes);
        };
        if (dtype == DType::f16) store(reinterpret_cast<f16*>(row));
        else if (dtype == DType::bf16) store(reinterpret_cast<bf16*>(row));
        else store(reinterpret_cast<float*>(row));
      }
    }
  }
}

// Two rows of fp32 lanes as one of pairs.
template <int R>
inline void pair_rows(const VecF32* even, const VecF32* odd, float* to) {
#ifdef FASTOPS_AVX512
  alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                     21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                     11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  for (int r = 0; r < R; ++r)
    _mm512_storeu_si512(
        to + r * L, _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                             (__m512i)_mm512_cvtne2ps_pbh(odd[r].v, even[r].v)));
#endif
  (void)even, (void)odd, (void)to;
}

// ---- masks --------------------------------------------------------------------------------

// `count` bits from bit `at` on, all in one word.
inline uint32_t row_bits(const uint32_t* bits, int64_t at, int64_t count) {
  const uint32_t word = bits[at / 32] >> (at % 32);
  return count == 32 ? word : word & ((uint32_t(1) << count) - 1);
}

// Bit i of word j becomes bit j of word i.
inline void transpose_bits(uint32_t (&w)[32]) {
  uint32_t mask = 0x0000ffff;
  for (int j = 16; j; j >>= 1, mask ^= mask << j)
    for (int k = 0; k < 32; k = (k + j + 1) & ~j) {
      const uint32_t t = ((w[k] >> j) ^ w[k + j]) & mask;
      w[k] ^= t << j;
      w[k + j] ^= t;
    }
}

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
