// Rows without mask, bias or per-row operands, fp32 accumulation, one read and one write.
//
// Budget per 16 fp32 elements (Zen 4, 13 clocks of memory time when out of cache): one exp (7
// clocks), a maximum and two passes over an L1 scratch. One loop does three things, so that
// reading, arithmetic and writing overlap: it exponentiates a chunk of 1024 elements against the
// running maximum into a scratch row, finds the maximum of the chunk that comes next, and scales
// and stores the chunk of the row before, whose place in the scratch row it takes: half the cache
// of two rows that take turns.
//
// -inf needs no branch: exp2 of -inf - max is 0. A NaN, or +inf - +inf, reaches the sum and from
// there the whole row. Rows of huge scores go to the general kernel.
#pragma once

#include "softmax/cpu/row_writer.h"
#include "softmax/cpu/score_rows.h"

namespace fastops::softmax::cpu {
namespace {

// Requests the line that many bytes ahead of the search for the maximum, which is itself a chunk
// ahead of the exponentials: far enough to hide DRAM, near enough to stay in L2.
inline constexpr int64_t kPrefetchBytes = 4096;

// The exponent of the maximum is not 0 but the rounding error of max * base2, common to the row and
// so without effect, unless the maximum is so large that 2^error leaves the range of floats.
inline constexpr float kHugeShift = 0x1p31f;

template <typename T>
inline void prefetch_line(const T* p) {
  prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes);
}
template <typename T>
inline void prefetch_pair(const T* p) {
  for (size_t i = 0; i < kPair * sizeof(T); i += 64) prefetch_line(p + i / sizeof(T));
}

// The maximum of n elements, lane by lane, found unit by unit while other work goes on: the loop
// that calls step() is the one that waits for memory.
// kWhole: n is a multiple of a unit, and step() is called once for each.
template <typename T, bool kWhole = false>
class Lookahead {
 public:
  Lookahead() = default;
  Lookahead(const T* x, int64_t n) : x_(x), n_(n) {}

  void step() {
    if (ended()) return;
    prefetch_pair(x_ + at_);
    most_.add(x_ + at_);
    at_ += kPair;
  }
  // The same unit in two parts, where it has two lines. Prefetches and streaming stores share the
  // core's few line buffers: taking turns line by line, neither waits for a burst of the other (15
  // % of the time of long fp32 rows, on a Sapphire Rapids).
  void first_half() {
    if constexpr (kHalves) {
      if (ended()) return;
      prefetch_line(x_ + at_);
      most_.add_first(x_ + at_);
    }
  }
  void second_half() {
    if constexpr (!kHalves) {
      step();
    } else if (!ended()) {
      prefetch_line(x_ + at_ + VecF32::size);
      most_.add_second(x_ + at_);
      at_ += kPair;
    }
  }
  VecF32 finish() {
    if (kWhole) return most_.lanes();
    while (!ended()) step();
    if (at_ < n_) most_.add(x_ + at_, int(n_ - at_));
    return most_.lanes();
  }

 private:
  static constexpr bool kHalves = sizeof(T) == 4;
  bool ended() const { return !kWhole && at_ + kPair > n_; }

  const T* x_ = nullptr;
  int64_t n_ = 0, at_ = 0;
  PairMax<T> most_;
};

template <typename T>
inline VecF32 max_lanes(const T* x, int64_t n) {
  return Lookahead<T>(x, n).finish();
}

// What one launch of the plain kernels needs besides the params.
struct PlainScale {
  float scale;        // score = x * scale
  float base2;        // exponent of two = x * base2
  double to_natural;  // a logarithm to base 2 in units of base2, times this = natural

  // From the log2 of a sum relative to the maximum (kExactly), or to `shift` = maximum * base2.
  template <bool kExactly>
  double lse(float max, float shift, double log2_sum) const {
    if constexpr (kExactly) return double(max) * double(scale) + log2_sum * to_natural;
    else return (double(shift) + log2_sum) * to_natural;
  }
};

inline PlainScale plain_scale(double scale) {
  const float base2 = float(scale * kLog2e);
  return {float(scale), base2, scale / double(base2)};
}

// How x and the maximum become an exponent of two. One FMA, x * base2 - max * base2, is cheapest;
// its error is the rounding of the second product, common to the row, which softmax does not see.
// A logarithm of the sum does, and without a true FMA there are two roundings: then (x - max)
// first.
template <Kind kKind>
inline constexpr bool kExact = kKind != Kind::softmax || !VecF32::exact_fma;

// Lane by lane.
struct ChunkResult {
  VecF32 sum;   // of this chunk's exponentials
  VecF32 next;  // the maximum of what comes next
};

// Exponentials of one chunk to `to` (if kept), and their sum; the search of what comes next and the
// writer keep step. `shift` is the maximum (kExactly), or the maximum times base2. The writer may
// read from `to` what the row before left there: it is always ahead of the stores.
template <int kDegree, bool kKeep, bool kExactly, typename Load, typename Next, typename W>
inline ChunkResult exp_chunk(const typename Load::Value* x, int64_t n, float base2, float shift,
                             float* to, Next next, W writer) {
  const VecF32 c(base2), m(kExactly ? shift : -shift);
  auto exponential = [c, m](VecF32 v) {
    return exp2<kDegree>(kExactly ? (v - m) * c : fma(v, c, m));
  };
  VecF32 total(0.f), sum_a(0.f), sum_b(0.f);
  VecF32 a, b;
  // A writer that had to begin within a line reads its last elements only in finish().
  const int64_t in_step = W::in_step ? n : n - kPair;
  int64_t j = 0;
  for (; j + kPair <= in_step; j += kPair) {
    Load::load(x + j, a, b);
    a = exponential(a);
    sum_a = sum_a + a;
    next.first_half();
    writer.first_half();
    if constexpr (kKeep && W::kHalves) a.store(to + j);
    b = exponential(b);
    sum_b = sum_b + b;
    next.second_half();
    writer.second_half();
    if constexpr (kKeep && !W::kHalves) a.store(to + j);
    if constexpr (kKeep) b.store(to + j + VecF32::size);
    // Short vectors make long sums: these start afresh now and then.
    if constexpr (VecF32::size < 8) {
      if (j % (16 * kPair) == 0) {
        total = total + (sum_a + sum_b);
        sum_a = sum_b = VecF32(0.f);
      }
    }
  }
  const VecF32 most = next.finish();
  writer.finish();
  for (; j < n; j += kPair) {
    Load::load(x + j, int(n - j < kPair ? n - j : kPair), a, b);
    a = exponential(a);
    b = exponential(b);
    if constexpr (kKeep) Natural<float>::store(to + j, a, b);
    sum_a = sum_a + a;
    sum_b = sum_b + b;
  }
  return {total + (sum_a + sum_b), most};
}

// The state of a row between being read and being written.
struct PlainRow {
  float* values;  // exponentials, whole chunks; those of the next row take their place
  float* shift;   // per chunk: what its exponentials are relative to; later its factor
  float* sum;     // per chunk
  const void* x = nullptr;
  void* out = nullptr;  // nullptr: nothing to write
  float log_shift = 0, log_sum = 0;

  static int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }
  static int64_t padded_chunks(int64_t n) { return (chunks(n) + kPair - 1) / kPair * kPair; }
  // Of two rows.
  static int64_t floats(int64_t n) { return chunks(n) * kChunk + 4 * padded_chunks(n); }

  PlainRow(float* memory, int64_t n, int which)
      : values(memory),
        shift(memory + chunks(n) * kChunk + 2 * which * padded_chunks(n)),
        sum(shift + padded_chunks(n)) {}
};

// Turns the chunks' shifts (in units of 1 / base2) into factors and returns the row's sum relative
// to `last`, the final shift.
inline double finish_chunks(const PlainRow& row, int64_t chunks, float last, float base2,
                            bool empty, bool zero_masked) {
  double total = 0;
  if (chunks == 1 && !empty) {  // the chunk is relative to the final shift already
    row.shift[0] = 1.f / row.sum[0];
    return double(row.sum[0]);
  }
  for (int64_t c = 0; c < chunks; c += VecF32::size) {
    const int lanes = int(chunks - c < VecF32::size ? chunks - c : VecF32::size);
    const VecF32 below = VecF32::load(row.shift + c, lanes) - VecF32(last);
    exp2(below * VecF32(base2)).store(row.shift + c, lanes);
    for (int i = 0; i < lanes; ++i) total += double(row.sum[c + i]) * double(row.shift[c + i]);
  }
  const float inverse = empty ? (zero_masked ? 0.f : __builtin_nanf("")) : float(1.0 / total);
  for (int64_t c = 0; c < chunks; ++c) row.shift[c] = empty ? inverse : row.shift[c] * inverse;
  return total;
}

// kWrite: softmax, log_softmax or (logsumexp) nothing.
template <Kind kKind, int kDegree, bool kStream, typename Load, typename Store>
class PlainRows {
  using In = typename Load::Value;
  using Out = typename Store::Value;
  using Carry = LineCarry<Out>;
  static constexpr bool kKeep = kKind == Kind::softmax;

 public:
  explicit PlainRows(const ForwardParams& p) : p_(p), n_(p.shape.n), scale_(plain_scale(p.scale)) {}

  void operator()(int64_t begin, int64_t end) const {
    // Without exponentials to keep only the general kernel's fallback needs whole rows.
    const size_t bytes = sizeof(float) * size_t(PlainRow::floats(n_));
    auto* memory = static_cast<float*>(thread_scratch(bytes));
    PlainRow rows[2] = {{memory, n_, 0}, {memory, n_, 1}};
    RowCursor cursor(p_.shape, begin);
    Carry carry;
    const In* x = input(cursor);
    VecF32 most = max_lanes(x, first_chunk());
    for (int64_t i = begin; i < end; ++i) {
      const RowCursor here = cursor;
      cursor.next();
      const In* following = i + 1 < end ? input(cursor) : nullptr;
      row(here, x, following, most, rows[i & 1], rows[~i & 1], carry);
      x = following;
    }
    flush(rows[~end & 1], carry);
    carry.flush();
    if (kStream) store_fence();
  }

 private:
  auto source(const PlainRow& row, int64_t begin) const {
    if constexpr (kKeep) {
      return ScaledExps{row.values + begin, row.shift[begin / kChunk]};
    } else {
      return LogProbs<Load>{static_cast<const In*>(row.x) + begin, scale_.scale, row.log_shift,
                            row.log_sum};
    }
  }
  auto writer(const PlainRow& row, int64_t begin, int64_t n, Carry& carry) const {
    return Writer<Store, kStream, decltype(source(row, 0))>(
        source(row, begin), static_cast<Out*>(row.out) + begin, n, carry);
  }

  const In* input(const RowCursor& cursor) const {
    return static_cast<const In*>(advance(p_.x, cursor.offset(p_.x.row_stride)));
  }
  int64_t first_chunk() const { return n_ < kChunk ? n_ : kChunk; }

  // `lanes`: the maximum of the row's first chunk; left behind: that of the following row's.
  void row(const RowCursor& cursor, const In* x, const In* following, VecF32& lanes,
           PlainRow& current, PlainRow& before, Carry& carry) const {
    float max = -infinity<VecF32>(), shift = max;
    bool huge = false;
    int64_t chunks = 0;
    for (int64_t begin = 0; begin < n_; begin += kChunk, ++chunks) {
      const int64_t count = n_ - begin < kChunk ? n_ - begin : kChunk;
      const float most = hmax(lanes);
      if (!(most <= max)) {
        max = most;
        shift = max * scale_.base2;
      }
      const int64_t behind = n_ - begin - count;
      Lookahead<In> next;
      if (behind > 0) next = {x + begin + count, behind < kChunk ? behind : kChunk};
      else if (following) next = {following, first_chunk()};
      huge |= __builtin_fabsf(shift) > kHugeShift && max != -infinity<VecF32>();
      const float relative = kExact<kKind> ? max : shift;
      const float finite = max == -infinity<VecF32>() ? 0.f : relative;
      current.shift[chunks] = relative;
      float* to = current.values + begin;
      auto exps = [&](auto writer) {
        return exp_chunk<kDegree, kKeep, kExact<kKind>, Load>(x + begin, count, scale_.base2,
                                                              finite, to, next, writer);
      };
      const ChunkResult chunk =
          before.out ? exps(writer(before, begin, count, carry)) : exps(NoWriter{});
      current.sum[chunks] = hsum(chunk.sum);
      lanes = chunk.next;
    }
    before.out = nullptr;
    if (huge) {
      score_row<VecF32>(p_, cursor, RowScratch<VecF32>(current.values, n_), kStream);
      return;
    }
    finish(cursor, current, chunks, max, shift);
    current.x = x;
    if (kKind != Kind::logsumexp)
      current.out = const_cast<void*>(advance(p_.out, cursor.offset(p_.out.row_stride)));
  }

  void finish(const RowCursor& cursor, PlainRow& row, int64_t chunks, float max,
              float shift) const {
    bool empty = max == -infinity<VecF32>();
    for (int64_t c = 0; c < chunks; ++c) empty &= row.sum[c] == 0;  // a NaN is not empty
    const double total =
        kExact<kKind> ? finish_chunks(row, chunks, max, scale_.base2, empty, p_.zero_masked_rows)
                      : finish_chunks(row, chunks, shift, 1.f, empty, p_.zero_masked_rows);
    if (kKind == Kind::softmax && !p_.lse) return;
    const double lse =
        empty ? double(max) : scale_.lse<kExact<kKind>>(max, shift, __builtin_log2(total));
    if (p_.lse) cursor.at<float>(p_.lse) = float(lse);
    row.log_shift = max * scale_.scale;
    row.log_sum = float(lse - double(row.log_shift));
    if (empty && p_.zero_masked_rows) row.log_shift = row.log_sum = 0;
  }

  void flush(PlainRow& row, Carry& carry) const {
    if (!row.out) return;
    for (int64_t begin = 0; begin < n_; begin += kChunk)
      writer(row, begin, n_ - begin < kChunk ? n_ - begin : kChunk, carry).finish();
    row.out = nullptr;
  }

  const ForwardParams& p_;
  const int64_t n_;
  const PlainScale scale_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
