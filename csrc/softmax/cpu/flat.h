// Rows that follow each other in memory, as one line of vectors.
//
// As many rows as a vector has lanes are as many vectors as a row has elements, whatever that is:
// such a group begins and ends with a whole line of the output. Most of its vectors belong to one
// row, those in which a row ends to two, where their operands are blended. So no row begins or ends
// with part of a vector, and no line is put together from parts. A row is at least a vector long.
#pragma once

#include <cstdint>

#include "cpu/simd.h"
#include "softmax/softmax.h"

namespace fastops::softmax::cpu {
namespace {

// Whether the rows of an operand lie one behind the other.
inline bool rows_follow(const Shape& shape, const Operand& o) {
  return shape.row_dims == 0 || (shape.row_dims == 1 && o.row_stride[0] == shape.n);
}

// A value per row, and one for what a last group has beyond its rows.
template <typename V>
struct FlatOperand {
  alignas(64) typename V::Scalar of[2 * V::size] = {};
};

// Whose the lanes of a vector are: all of them row `row`'s, or the first ones, and the rest the
// next row's.
template <typename V>
struct OneRow {
  int row;
  V of(const FlatOperand<V>& p) const { return V(p.of[row]); }
};
template <typename V>
struct TwoRows {
  int row;
  typename V::Mask first;
  V of(const FlatOperand<V>& p) const { return select(first, V(p.of[row]), V(p.of[row + 1])); }
};

// Calls, over the first `count` rows of n elements of a group, visit(vector, OneRow or TwoRows),
// and behind the last vector of each row ended(row).
template <typename V, typename Visit, typename Ended>
inline void walk_flat(int count, int64_t n, Visit visit, Ended ended) {
  int64_t at = 0, end = n;
  for (int r = 0; r < count; ++r, end += n) {
    for (; (at + 1) * V::size <= end; ++at) visit(at, OneRow<V>{r});
    if (const int rest = int(end - at * V::size)) visit(at++, TwoRows<V>{r, V::first(rest)});
    ended(r);
  }
}

// The maximum, lane by lane, of the row that is being walked.
template <typename V>
class FlatMax {
 public:
  void add(OneRow<V>, V v) { here_ = max(v, here_); }
  void add(TwoRows<V> rows, V v) {
    here_ = max(select(rows.first, v, low()), here_);
    behind_ = select(rows.first, low(), v);
  }
  V end() {
    const V most = here_;
    here_ = behind_;
    behind_ = low();
    return most;
  }

 private:
  static V low() { return V(-__builtin_inff()); }

  V here_ = low(), behind_ = low();
};

// The sums of a group's rows by lane. Turned by where a row begins they are the same wherever it
// lies: element j always was in lane j % V::size.
template <typename V>
struct FlatLanes {
  alignas(64) typename V::Scalar of[V::size][2 * V::size];

  void turned(int count, int64_t n, V* rows) const {
    for (int r = 0; r < V::size; ++r)
      rows[r] = r < count ? V::load(of[r] + r * n % V::size) : V(typename V::Scalar(0));
  }
};

// The sum of the row that is being walked: every other vector in one of two, of which it does not
// matter to their total which has the even ones. Apart from FlatLanes, so that it stays in
// registers.
template <typename V>
class FlatSum {
 public:
  // What the next terms are added to.
  V ahead() const { return a_; }
  // That sum, and what its terms are alone, from which the next row goes on.
  void add(OneRow<V>, V sum, V) {
    a_ = b_;
    b_ = sum;
  }
  void add(TwoRows<V> rows, V sum, V start) {
    add(OneRow<V>{rows.row}, select(rows.first, sum, a_), start);
    behind_ = select(rows.first, zero(), start);
  }
  void end(int r, FlatLanes<V>& lanes) {
    const V sum = a_ + b_;
    sum.store(lanes.of[r]);
    sum.store(lanes.of[r] + V::size);
    a_ = zero();
    b_ = behind_;
    behind_ = zero();
  }

 private:
  static V zero() { return V(typename V::Scalar(0)); }

  V a_ = zero(), b_ = zero(), behind_ = zero();
};

}  // namespace
}  // namespace fastops::softmax::cpu
