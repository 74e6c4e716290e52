// Rows that are read twice: too long for a scratch row, few enough to be shared between threads, or
// asked for by algorithm. The three ways to find a row's sum of exponentials:
//
//   online      per chunk of 1024 elements its maximum (from L1), then its exponentials; chunk sums
//               meet in double
//   two_pass    each exponential as mantissa * 2^exponent, added as such pairs; no maximum
//               (Two-Pass Softmax, section 4); needs a true FMA, online where there is none
//   three_pass  the row's maximum first, so three reads
//
// A row is cut into splits of fixed size whose sums are combined in order: what thread took which
// split does not show in the result. The second read goes backwards through the splits, to begin
// with what the first left in the cache.
#pragma once

#include "cpu/parallel.h"
#include "softmax/cpu/plain_rows.h"

namespace fastops::softmax::cpu {
namespace {

// A sum of exponentials relative to `shift`: the maximum, or an exponent of two. Adding two keeps
// the larger shift; `unit` is base2, or 1 where shifts are exponents of two.
struct ScaledSum {
  float shift = -infinity<VecF32>();
  double sum = 0;

  void add(float other_shift, double other, float unit) {
    if (other_shift > shift) {
      sum *= __builtin_exp2((double(shift) - double(other_shift)) * double(unit));
      shift = other_shift;
      sum += other;
    } else if (other_shift == shift || other != other) {
      sum += other;
    } else {
      sum += other * __builtin_exp2((double(other_shift) - double(shift)) * double(unit));
    }
  }
};

// One exponential as p * 2^n.
struct MantissaExponent {
  VecF32 p, n;

  // x is limited below so that n stays finite: there is no way back from inf - inf.
  MantissaExponent(VecF32 x, VecF32 base2, VecF32 lowest) {
    x = max(lowest, x);
    n = round(x * base2);
    p = exp2_fraction<5>(fma(x, base2, VecF32(0.f) - n));
  }
};

// Sums of such pairs, lane by lane.
struct PairSum {
  VecF32 sum{0.f}, exponent{-0x1p38f};

  void add(const MantissaExponent& e) { add(e.p, e.n); }
  void add(const PairSum& other) { add(other.sum, other.exponent); }

 private:
  void add(VecF32 p, VecF32 n) {
    const VecF32 larger = max(n, exponent);
    sum = scale2(sum, exponent - larger) + scale2(p, n - larger);
    exponent = larger;
  }
};

// What exp(s - lse) is made of again. kPairs: by way of mantissas and exponents.
template <bool kPairs>
struct ExpWeight {
  float base2, shift, inverse;

  VecF32 operator()(VecF32 x) const {
    if constexpr (kPairs) {
      const MantissaExponent e(x, VecF32(base2), VecF32(-0x1p37f / base2));
      return scale2(e.p * VecF32(inverse), e.n - VecF32(shift));
    } else {
      return exp2((x - VecF32(shift)) * VecF32(base2)) * VecF32(inverse);
    }
  }
};

// The same where results of 16 bits hide that the polynomial is short and has 1 / sum in its
// coefficients. `shift` = maximum * base2, rounded as it was for the sum.
template <int kDegree>
struct FusedWeight {
  float base2, shift, inverse;

  VecF32 operator()(VecF32 x) const {
    return exp2<kDegree>(fma(x, VecF32(base2), VecF32(-shift)), inverse);
  }
};

// weight(x) of every element, from x itself.
template <typename Load, typename Weight>
struct Recomputed {
  const typename Load::Value* from;
  Weight weight;

  void get(int64_t j, VecF32& a, VecF32& b) const {
    Load::load(from + j, a, b);
    a = weight(a);
    b = weight(b);
  }
  void get(int64_t j, int n, VecF32& a, VecF32& b) const {
    Load::load(from + j, n, a, b);
    a = weight(a);
    b = weight(b);
  }
  VecF32 half(int64_t j) const
    requires(__is_same(Load, Natural<float>))
  {
    return weight(VecF32::load(from + j));
  }
};

template <Kind kKind, int kDegree, bool kStream, typename Load, typename Store>
class RereadRows {
  using In = typename Load::Value;
  using Out = typename Store::Value;
  // Exponents from one FMA, relative to the rounded product of maximum and base2.
  static constexpr bool kFused = !kExact<kKind> && kDegree < 5;

 public:
  explicit RereadRows(const ForwardParams& p)
      : p_(p),
        n_(p.shape.n),
        splits_((n_ + kSplit - 1) / kSplit),
        scale_(plain_scale(p.scale)),
        algorithm_(choose(p.algorithm, VecF32::exact_fma)),
        unit_(kFused || algorithm_ == Algorithm::two_pass ? 1.f : scale_.base2) {}

  // Whole rows, one thread each.
  void operator()(int64_t begin, int64_t end) const {
    RowCursor cursor(p_.shape, begin);
    for (int64_t i = begin; i < end; ++i, cursor.next())
      row(cursor, [](int64_t splits, auto body) { body(0, splits); });
  }

  // One row after the other, all threads on each.
  void share() const {
    RowCursor cursor(p_.shape, 0);
    for (int64_t i = 0; i < p_.shape.rows; ++i, cursor.next())
      row(cursor, [](int64_t splits, auto body) { parallel_for(0, splits, 1, body); });
  }

 private:
  template <typename Spread>
  void row(const RowCursor& cursor, Spread spread) const {
    const In* x = static_cast<const In*>(advance(p_.x, cursor.offset(p_.x.row_stride)));
    Sums parts(splits_);
    float known = 0;
    if (algorithm_ == Algorithm::three_pass) {
      spread(splits_, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s)
          parts[s].shift = hmax(max_lanes(x + s * kSplit, size(s)));
      });
      known = parts[0].shift;
      for (int64_t s = 1; s < splits_; ++s) known = parts[s].shift > known ? parts[s].shift : known;
    }
    spread(splits_, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) parts[s] = sum_split(x + s * kSplit, size(s), known);
    });
    ScaledSum total = parts[0];
    for (int64_t s = 1; s < splits_; ++s) total.add(parts[s].shift, parts[s].sum, unit_);

    // Empty rows, infinities and huge scores (for two_pass those whose exponent has no fraction
    // bits left). A NaN is in the sum and needs no care where 1 / sum is a factor of every element.
    const float limit = algorithm_ == Algorithm::two_pass ? 0x1p22f : kHugeShift;
    const bool lost = kFused && total.sum != total.sum;
    if (lost || !(__builtin_fabsf(total.shift * unit_) <= limit)) {
      RowScratch<VecF32> scratch(thread_scratch(RowScratch<VecF32>::bytes(n_)), n_);
      score_row<VecF32>(p_, cursor, scratch, kStream);
      return;
    }
    const double log2_sum = __builtin_log2(total.sum);
    const double lse = kFused || algorithm_ == Algorithm::two_pass
                           ? scale_.lse<false>(0.f, total.shift, log2_sum)
                           : scale_.lse<true>(total.shift, 0.f, log2_sum);
    if (p_.lse) cursor.at<float>(p_.lse) = float(lse);
    if constexpr (kKind == Kind::logsumexp) return;

    Out* out =
        static_cast<Out*>(const_cast<void*>(advance(p_.out, cursor.offset(p_.out.row_stride))));
    spread(splits_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = splits_ - 1 - i;
        write_split(x + s * kSplit, out + s * kSplit, size(s), total, lse);
      }
      if (kStream) store_fence();
    });
  }

  int64_t size(int64_t s) const { return s + 1 < splits_ ? kSplit : n_ - s * kSplit; }

  ScaledSum sum_split(const In* x, int64_t n, float known) const {
    ScaledSum total;
    float max = -infinity<VecF32>();
    VecF32 lanes(max);
    if (algorithm_ == Algorithm::online) lanes = max_lanes(x, n < kChunk ? n : kChunk);
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int64_t count = n - begin < kChunk ? n - begin : kChunk;
      if (algorithm_ == Algorithm::two_pass) {
        add_pairs(x + begin, count, total);
        continue;
      }
      Lookahead<In> next;
      if (algorithm_ == Algorithm::three_pass) {
        max = known;
      } else {
        const float most = hmax(lanes);
        if (!(most <= max)) max = most;
        const int64_t behind = n - begin - count;
        next = {x + begin + count, behind < kChunk ? behind : kChunk};
      }
      const float shift = kFused ? max * scale_.base2 : max;
      const float finite = max == -infinity<VecF32>() ? 0.f : shift;
      const ChunkResult chunk = exp_chunk<kDegree, false, !kFused, Load>(
          x + begin, count, scale_.base2, finite, nullptr, next, NoWriter{});
      lanes = chunk.next;
      total.add(shift, double(hsum(chunk.sum)), unit_);
    }
    return total;
  }

  void add_pairs(const In* x, int64_t n, ScaledSum& total) const {
    const VecF32 base2(scale_.base2), lowest(-0x1p37f / scale_.base2);
    PairSum sum_a, sum_b;  // two: half as long a chain of additions
    VecF32 a, b;
    auto add = [&] {
      sum_a.add({a, base2, lowest});
      sum_b.add({b, base2, lowest});
    };
    int64_t j = 0;
    for (; j + kPair <= n; j += kPair) {
      prefetch_pair(x + j);
      Load::load(x + j, a, b);
      add();
    }
    if (j < n) {
      Load::load(x + j, int(n - j), a, b);
      add();
    }
    sum_a.add(sum_b);
    const float largest = hmax(sum_a.exponent);
    total.add(largest, double(hsum(scale2(sum_a.sum, sum_a.exponent - VecF32(largest)))), unit_);
  }

  void write_split(const In* x, Out* out, int64_t n, const ScaledSum& total, double lse) const {
    LineCarry<Out> carry;
    auto write = [&](auto source) {
      Writer<Store, kStream, decltype(source)> writer(source, out, n, carry);
      for (int64_t j = 0; j + kPair <= n; j += kPair) {
        prefetch_pair(x + j);
        writer.first_half();
        writer.second_half();
      }
      writer.finish();
    };
    if constexpr (kKind == Kind::log_softmax) {
      const double per_shift =
          algorithm_ == Algorithm::two_pass ? scale_.to_natural : double(scale_.scale);
      const float shift = float(double(total.shift) * per_shift);
      write(LogProbs<Load>{x, scale_.scale, shift, float(lse - double(shift))});
    } else {
      const float inverse = float(1.0 / total.sum);
      const auto write_weights = [&]<typename Weight>(Weight weight) {
        write(Recomputed<Load, Weight>{x, weight});
      };
      if (algorithm_ == Algorithm::two_pass)
        write_weights(ExpWeight<true>{scale_.base2, total.shift, inverse});
      else if constexpr (kFused)
        write_weights(FusedWeight<kDegree>{scale_.base2, total.shift, inverse});
      else write_weights(ExpWeight<false>{scale_.base2, total.shift, inverse});
    }
    carry.flush();
  }

  // A plain array; the standard containers would be compiled once per instruction set.
  class Sums {
   public:
    explicit Sums(int64_t n) : data_(new ScaledSum[size_t(n)]) {}
    ~Sums() { delete[] data_; }
    Sums(const Sums&) = delete;
    Sums& operator=(const Sums&) = delete;
    ScaledSum& operator[](int64_t i) { return data_[i]; }

   private:
    ScaledSum* data_;
  };

  const ForwardParams& p_;
  const int64_t n_, splits_;
  const PlainScale scale_;
  const Algorithm algorithm_;
  const float unit_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
