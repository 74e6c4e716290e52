// Rows shorter than two vectors, a row a lane: a handful of elements, or experts, or classes.
//
// Budget per group of 16 rows: a masked load and store and a transpose in registers each way for
// every 16 elements, and one exp per element of a row: at 16 fp32 elements a sixth of the time of
// rows laid along the vector. Every group runs through the same instructions, and results do not
// depend on a row's place in it.
#pragma once

#include "cpu/transpose.h"
#include "softmax/cpu/small_rows.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int64_t kTinyRow = 31;  // longest row

template <Kind kKind, typename In, typename Out>
class TinyRows {
  using V = VecF32;
  static_assert(kGroup == V::size);

 public:
  explicit TinyRows(const ForwardParams& p)
      : p_(p), n_(int(p.shape.n)), scale_(plain_scale(p.scale)) {}

  void operator()(int64_t begin, int64_t end) const {
    auto* spare = static_cast<float*>(thread_scratch(RowScratch<V>::bytes(n_)));
    RowCursor cursor(p_.shape, begin * kGroup);
    for (int64_t g = begin; g < end; ++g) {
      const int64_t left = p_.shape.rows - g * kGroup;
      group(cursor, int(left < kGroup ? left : kGroup), spare);
    }
  }

 private:
  // `count` rows from the cursor on, which it moves.
  void group(RowCursor& cursor, int count, float* spare) const {
    const RowCursor start = cursor;
    const In* x[kGroup];
    Out* out[kGroup];
    for (int r = 0; r < kGroup; ++r) {
      if (r >= count) {  // computed from another row, and never written
        x[r] = x[0];
        continue;
      }
      x[r] = static_cast<const In*>(advance(p_.x, cursor.offset(p_.x.row_stride)));
      if (kKind != Kind::logsumexp)
        out[r] =
            static_cast<Out*>(const_cast<void*>(advance(p_.out, cursor.offset(p_.out.row_stride))));
      cursor.next();
    }

    V values[kTinyRow + 1];  // [element], lanes are rows
    for (int j = 0; j < n_; j += V::size) {
      for (int r = 0; r < V::size; ++r) values[j + r] = V::load(x[r] + j, width(j));
      fastops::cpu::transpose(values + j);
    }
    const V low(-infinity<V>());
    V most = low;
    for (int j = 0; j < n_; ++j) most = max(values[j], most);
    const V shift = most * V(scale_.base2);
    if (any(V(kHugeShift) < shift) || any(both(shift < V(-kHugeShift), low < most))) {
      RowCursor again = start;
      for (int r = 0; r < count; ++r, again.next())
        score_row<V>(p_, again, RowScratch<V>(spare, n_), false);
      return;
    }
    const V top = select(most == low, V(0.f), kExact<kKind> ? most : shift), base2(scale_.base2);
    V sums[4] = {V(0.f), V(0.f), V(0.f), V(0.f)};
    for (int j = 0; j < n_; ++j) {
      const V e =
          exp2(kExact<kKind> ? (values[j] - top) * base2 : fma(values[j], base2, V(0.f) - top));
      sums[j % 4] = sums[j % 4] + e;
      if constexpr (kKind == Kind::softmax) values[j] = e;
    }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    finish(start, count, most, shift, sum, values);
    if (kKind == Kind::logsumexp) return;
    for (int j = 0; j < n_; j += V::size) {
      fastops::cpu::transpose(values + j);
      for (int r = 0; r < count; ++r) values[j + r].store(out[r] + j, width(j));
    }
  }

  int width(int j) const { return n_ - j < V::size ? n_ - j : V::size; }

  // From exponentials (softmax) or inputs to results, and the lse.
  void finish(const RowCursor& cursor, int count, V most, V shift, V sum, V* values) const {
    if constexpr (kKind == Kind::softmax) {
      const V factor = reciprocals(p_, sum);
      for (int j = 0; j < n_; ++j) values[j] = values[j] * factor;
    }
    alignas(64) float max[kGroup] = {}, log_sum[kGroup] = {};
    if (kKind != Kind::softmax || p_.lse)
      finish_logs<kKind>(p_, scale_, cursor, count, most, shift, sum, max, log_sum);
    if constexpr (kKind == Kind::log_softmax) {
      const V down = V(0.f) - V::load(max), less = V::load(log_sum), scale(scale_.scale);
      for (int j = 0; j < n_; ++j) values[j] = fma(values[j], scale, down) - less;
    }
  }

  const ForwardParams& p_;
  const int n_;
  const PlainScale scale_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
