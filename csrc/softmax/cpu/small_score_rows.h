// Short rows of the general kernel, a group at a time (see small_rows.h for why): scores of the
// whole group to scratch, one tree of shuffles for the maxima, one for the sums.
#pragma once

#include "softmax/cpu/score_rows.h"
#include "softmax/cpu/small_rows.h"

namespace fastops::softmax::cpu {
namespace {

class SmallScoreRows {
  using V = VecF32;

 public:
  SmallScoreRows(const ForwardParams& p, bool stream)
      : p_(p), n_(p.shape.n), padded_((n_ + V::size - 1) / V::size * V::size), stream_(stream) {}

  static int64_t groups(int64_t rows) { return (rows + kGroup - 1) / kGroup; }

  void operator()(int64_t begin, int64_t end) const {
    auto* values = static_cast<float*>(thread_scratch(sizeof(float) * size_t(kGroup * padded_)));
    RowCursor cursor(p_.shape, begin * kGroup);
    for (int64_t g = begin; g < end; ++g) group(cursor, g * kGroup, values);
    if (stream_) store_fence();
  }

 private:
  void group(RowCursor& cursor, int64_t first, float* values) const {
    const RowCursor start = cursor;
    const int count = int(p_.shape.rows - first < kGroup ? p_.shape.rows - first : kGroup);
    const V low(-infinity<V>());
    V lanes[kGroup];
    for (int r = 0; r < kGroup; ++r) {
      lanes[r] = low;
      if (r >= count) continue;
      const RowScores<V> scores(p_, cursor);
      const int64_t length = scores.length();
      float* row = values + r * padded_;
      lanes[r] = scores(0, length, row);
      for (int64_t j = (length + V::size - 1) / V::size * V::size; j < padded_; j += V::size)
        low.store(row + j);
      cursor.next();
    }
    const V most = transpose_reduce(lanes, [](V a, V b) { return max(a, b); });
    alignas(64) float shift[kGroup], sum[kGroup], factor[kGroup];
    select(most == low, V(0.f), most).store(shift);

    for (int r = 0; r < count; ++r) {
      float* row = values + r * padded_;
      const V m(shift[r]);
      V total(0.f);
      for (int64_t j = 0; j < padded_; j += V::size) {
        const V e = exp_below(V::load(row + j) - m);
        if (p_.kind == Kind::softmax) e.store(row + j);
        total = total + e;
      }
      lanes[r] = total;
    }
    const V total = transpose_reduce(lanes, [](V a, V b) { return a + b; });
    const V nothing(p_.zero_masked_rows ? 0.f : __builtin_nanf(""));
    select(total == V(0.f), nothing, V(1.f) / total).store(factor);
    total.store(sum);
    most.store(shift);

    RowCursor at = start;
    for (int r = 0; r < count; ++r, at.next()) {
      float log_shift = 0, log_sum = 0;
      if (p_.lse || p_.kind == Kind::log_softmax) {
        const RowResult<V> result =
            finish_row<V>(p_, at, RowScores<V>(p_, at), shift[r], double(sum[r]));
        log_shift = result.shift;
        log_sum = result.log_sum;
      }
      if (p_.out) write_row(at, values + r * padded_, factor[r], log_shift, log_sum);
    }
  }

  // Excluded elements lie in scratch as 0 (or -inf), so that the factor (or the logarithm) makes
  // of them what the row demands.
  void write_row(const RowCursor& at, const float* row, float factor, float shift,
                 float log_sum) const {
    with_float(p_.out.dtype, [&](auto t) {
      using Out = decltype(t);
      Out* out =
          static_cast<Out*>(const_cast<void*>(advance(p_.out, at.offset(p_.out.row_stride))));
      if (p_.kind == Kind::softmax) {
        const V f(factor);
        write<V>(out, row, n_, stream_, [f](V e) { return e * f; });
      } else {
        const V m(shift), l(log_sum);
        write<V>(out, row, n_, stream_, [m, l](V s) { return (s - m) - l; });
      }
    });
  }

  const ForwardParams& p_;
  const int64_t n_, padded_;
  const bool stream_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
