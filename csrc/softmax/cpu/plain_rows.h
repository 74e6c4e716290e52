// Rows without mask, bias or per-row operands, fp32 accumulation, one read and one write.
//
// Budget per 16 fp32 elements (Zen 4, 13 clocks of memory time when out of cache): one exp (7
// clocks), a maximum and two passes over an L1 scratch. A chunk of 1024 elements is searched for
// its maximum, then exponentiated against the running maximum into a scratch row; the same loop
// scales and stores the chunk of the row before, so that stores to memory and arithmetic overlap.
// Two scratch rows take turns, staggered so that their addresses do not collide modulo 4 KB.
//
// -inf needs no branch: exp2 of -inf - max is 0. A NaN, or +inf - +inf, reaches the sum and from
// there the whole row. Rows of huge scores go to the general kernel.
#pragma once

#include "cpu/pairs.h"
#include "softmax/cpu/score_rows.h"

namespace fastops::softmax::cpu {
namespace {

// Requests the line that many bytes ahead: far enough to hide DRAM, near enough to stay in L2.
inline constexpr int64_t kPrefetchBytes = 8192;

// The exponent of the maximum is not 0 but the rounding error of max * base2, common to the row and
// so without effect, unless the maximum is so large that 2^error leaves the range of floats.
inline constexpr float kHugeShift = 0x1p31f;

template <typename T>
inline void prefetch_pair(const T* p) {
  const char* ahead = reinterpret_cast<const char*>(p) + kPrefetchBytes;
  for (size_t i = 0; i < kPair * sizeof(T); i += 64) prefetch(ahead + i);
}

template <typename T>
inline VecF32 max_lanes(const T* x, int64_t n) {
  PairMax<T> most;
  int64_t j = 0;
  for (; j + kPair <= n; j += kPair) {
    prefetch_pair(x + j);
    most.add(x + j);
  }
  if (j < n) most.add(x + j, int(n - j));
  return most.lanes();
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

// Results of the row before, unit by unit: exponentials times a factor.
struct ScaledExps {
  const float* from;
  float factor;

  void get(int64_t j, VecF32& a, VecF32& b) const {
    Natural<float>::load(from + j, a, b);
    a = a * VecF32(factor);
    b = b * VecF32(factor);
  }
  // The order within a unit is the loader's, so a part of one is not its first n floats. Scratch
  // goes on behind the row.
  void get(int64_t j, int, VecF32& a, VecF32& b) const { get(j, a, b); }
};

// (x * scale - shift) - log_sum, from x itself.
template <typename Load>
struct LogProbs {
  const typename Load::Value* from;
  float scale, shift, log_sum;

  void get(int64_t j, VecF32& a, VecF32& b) const {
    Load::load(from + j, a, b);
    finish(a, b);
  }
  void get(int64_t j, int n, VecF32& a, VecF32& b) const {
    Load::load(from + j, n, a, b);
    finish(a, b);
  }

 private:
  void finish(VecF32& a, VecF32& b) const {
    a = fma(a, VecF32(scale), VecF32(-shift)) - VecF32(log_sum);
    b = fma(b, VecF32(scale), VecF32(-shift)) - VecF32(log_sum);
  }
};

// Elements of the last line that a row filled only in part. The next row, where it lies right
// behind, completes the line, so that rows of odd length leave in whole lines too: a line stored
// half past the caches and half through them costs several times a whole one.
template <typename Out>
class LineCarry {
 public:
  static constexpr int kLine = (kPair * sizeof(Out) < 64 ? kPair * sizeof(Out) : 64) / sizeof(Out);

  static int offset(const Out* p) {
    return int(reinterpret_cast<uintptr_t>(p) / sizeof(Out) % kLine);
  }
  // Whether p continues what is held; if not, that is written out.
  bool continues(const Out* p) {
    if (count_ > 0 && p != end_) flush();
    return count_ > 0;
  }
  // Where the next elements of the line go, and that n of them are there now; `end` is the address
  // they belong to, one past the last.
  Out* next() { return line_ + count_; }
  void add(int n, Out* end) {
    count_ += n;
    end_ = end;
    if (count_ < kLine) return;
    constexpr int step = VecF32::size;
    for (int i = 0; i < int(kLine * sizeof(Out) / sizeof(float)); i += step)
      VecF32::load(reinterpret_cast<const float*>(line_) + i)
          .stream(reinterpret_cast<float*>(end - kLine) + i);
    count_ = 0;
  }
  void flush() {
    for (int i = 0; i < count_; ++i) end_[i - count_] = line_[i];
    count_ = 0;
  }

 private:
  alignas(64) Out line_[64 / sizeof(Out)];
  Out* end_ = nullptr;
  int count_ = 0;
};

// Writes n results of `source` unit by unit. step() writes one whole unit and says whether there
// was one. Streaming stores take whole aligned lines: what comes before and behind goes to `carry`.
template <typename Store, bool kStream, typename Source>
class Writer {
 public:
  using Out = typename Store::Value;
  using Carry = LineCarry<Out>;

  Writer(const Source& source, Out* out, int64_t n, Carry& carry)
      : source_(source), out_(out), n_(n), carry_(carry) {
    if constexpr (kStream && Store::any_offset) {
      const int held = Carry::offset(out), missing = Carry::kLine - held;
      const int count = int(missing < n ? missing : n);
      const bool continues = carry.continues(out);
      if (held == 0) return;
      put(continues ? carry.next() : out, count);
      if (continues) carry.add(count, out + count);
    }
  }
  bool step() {
    if (at_ + kPair > n_) return false;
    VecF32 a, b;
    source_.get(at_, a, b);
    if constexpr (kStream) Store::stream(out_ + at_, a, b);
    else Store::store(out_ + at_, a, b);
    at_ += kPair;
    return true;
  }
  void finish() {
    while (step()) {
    }
    if constexpr (kStream && Store::any_offset) {
      while (at_ < n_) {
        const int count = int(n_ - at_ < Carry::kLine ? n_ - at_ : Carry::kLine);
        put(carry_.next(), count);
        carry_.add(count, out_ + at_);
      }
    } else if (at_ < n_) {
      put(out_ + at_, int(n_ - at_));
    }
  }

 private:
  void put(Out* to, int n) {
    VecF32 a, b;
    source_.get(at_, n, a, b);
    Store::store(to, n, a, b);
    at_ += n;
  }
  const Source source_;
  Out* const out_;
  const int64_t n_;
  Carry& carry_;
  int64_t at_ = 0;
};

struct NoWriter {
  bool step() { return false; }
  void finish() {}
};

// How x and the maximum become an exponent of two. One FMA, x * base2 - max * base2, is cheapest;
// its error is the rounding of the second product, common to the row, which softmax does not see.
// A logarithm of the sum does, and without a true FMA there are two roundings: then (x - max)
// first.
template <Kind kKind>
inline constexpr bool kExact = kKind != Kind::softmax || !VecF32::exact_fma;

// Exponentials of one chunk to `to` (if kept), and their sum, lane by lane; the writer keeps step.
// `shift` is the maximum (kExactly), or the maximum times base2.
template <int kDegree, bool kKeep, bool kExactly, typename Load, typename W>
inline VecF32 exp_chunk(const typename Load::Value* x, int64_t n, float base2, float shift,
                        float* to, W writer) {
  const VecF32 c(base2), m(kExactly ? shift : -shift);
  auto exponential = [c, m](VecF32 v) {
    return exp2<kDegree>(kExactly ? (v - m) * c : fma(v, c, m));
  };
  VecF32 sum_a(0.f), sum_b(0.f);
  VecF32 a, b;
  int64_t j = 0;
  for (; j + kPair <= n; j += kPair) {
    Load::load(x + j, a, b);
    a = exponential(a);
    b = exponential(b);
    if constexpr (kKeep) Natural<float>::store(to + j, a, b);
    sum_a = sum_a + a;
    sum_b = sum_b + b;
    writer.step();
  }
  if (j < n) {
    Load::load(x + j, int(n - j), a, b);
    a = exponential(a);
    b = exponential(b);
    if constexpr (kKeep) Natural<float>::store(to + j, a, b);
    sum_a = sum_a + a;
    sum_b = sum_b + b;
  }
  writer.finish();
  return sum_a + sum_b;
}

// The state of a row between being read and being written.
struct PlainRow {
  float* values;  // exponentials, whole chunks
  float* shift;   // per chunk: what its exponentials are relative to; later its factor
  float* sum;     // per chunk
  const void* x = nullptr;
  void* out = nullptr;  // nullptr: nothing to write
  float log_shift = 0, log_sum = 0;

  static int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }
  static int64_t padded_chunks(int64_t n) { return (chunks(n) + kPair - 1) / kPair * kPair; }
  // 272 floats of stagger: 1088 bytes.
  static int64_t floats(int64_t n) { return chunks(n) * kChunk + 2 * padded_chunks(n) + 272; }

  PlainRow(float* memory, int64_t n)
      : values(memory), shift(memory + chunks(n) * kChunk), sum(shift + padded_chunks(n)) {}
};

// Turns the chunks' shifts (in units of 1 / base2) into factors and returns the row's sum relative
// to `last`, the final shift.
inline double finish_chunks(const PlainRow& row, int64_t chunks, float last, float base2,
                            bool empty, bool zero_masked) {
  double total = 0;
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
    const int64_t floats = PlainRow::floats(n_);
    auto* memory = static_cast<float*>(thread_scratch(sizeof(float) * size_t(2 * floats)));
    PlainRow rows[2] = {{memory, n_}, {memory + floats, n_}};
    RowCursor cursor(p_.shape, begin);
    Carry carry;
    for (int64_t i = begin; i < end; ++i, cursor.next())
      row(cursor, rows[i & 1], rows[~i & 1], carry);
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

  void row(const RowCursor& cursor, PlainRow& current, PlainRow& before, Carry& carry) const {
    const In* x = static_cast<const In*>(advance(p_.x, cursor.offset(p_.x.row_stride)));
    float max = -infinity<VecF32>(), shift = max;
    bool huge = false;
    int64_t chunks = 0;
    for (int64_t begin = 0; begin < n_; begin += kChunk, ++chunks) {
      const int64_t count = n_ - begin < kChunk ? n_ - begin : kChunk;
      const float most = hmax(max_lanes(x + begin, count));
      if (!(most <= max)) {
        max = most;
        shift = max * scale_.base2;
      }
      huge |= __builtin_fabsf(shift) > kHugeShift && max != -infinity<VecF32>();
      const float relative = kExact<kKind> ? max : shift;
      const float finite = max == -infinity<VecF32>() ? 0.f : relative;
      current.shift[chunks] = relative;
      float* to = current.values + begin;
      auto exps = [&](auto writer) {
        return exp_chunk<kDegree, kKeep, kExact<kKind>, Load>(x + begin, count, scale_.base2,
                                                              finite, to, writer);
      };
      current.sum[chunks] =
          hsum(before.out ? exps(writer(before, begin, count, carry)) : exps(NoWriter{}));
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
