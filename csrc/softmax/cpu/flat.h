// Rows that follow each other in memory, as one line of vectors.
//
// As many rows as a vector has lanes are as many vectors as a row has elements, whatever that is:
// such a group begins and ends with a whole line of the output. Most of its vectors belong to one
// row, those in which a row ends to two, where their operands are blended. So no row begins or ends
// with part of a vector, and no line is put together from parts. A row is at least a vector long.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace fastops::softmax::cpu {
namespace {

// Calls, over the first `count` rows of n elements of a group, line(vector, row) where a vector is
// one row's, shared(vector, row, lanes of this row) where the next row begins in it, and ended(row)
// behind the last of each.
template <typename V, typename Line, typename Shared, typename Ended>
inline void walk_flat(int count, int64_t n, Line line, Shared shared, Ended ended) {
  int64_t at = 0, end = n;
  for (int r = 0; r < count; ++r, end += n) {
    for (; (at + 1) * V::size <= end; ++at) line(at, r);
    if (const int rest = int(end - at * V::size)) shared(at++, r, V::first(rest));
    ended(r);
  }
}

// A value per row, and one for what a last group has beyond its rows.
template <typename V>
struct FlatOperand {
  alignas(64) typename V::Scalar of[2 * V::size] = {};

  V all(int r) const { return V(of[r]); }
  V blend(int r, typename V::Mask first) const { return select(first, all(r), all(r + 1)); }
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
  // What the next terms are added to, and that sum.
  V ahead() const { return a_; }
  void add(V sum) {
    a_ = b_;
    b_ = sum;
  }
  // The same for a vector that another row begins in, whose terms alone are `start`.
  void add(typename V::Mask first, V sum, V start) {
    add(select(first, sum, a_));
    behind_ = select(first, zero(), start);
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
