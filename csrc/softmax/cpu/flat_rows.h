// Short rows that end within vectors, as the 197 tokens of a ViT, by groups of flat.h. One loop
// exponentiates a group, finds the maxima of the next one and writes the one before, whose place in
// scratch it takes, as in small_rows.h.
//
// Budget per 16 fp32 elements: that of small_rows.h, and a quarter more per row.
#pragma once

#include "softmax/cpu/flat.h"
#include "softmax/cpu/small_rows.h"

namespace fastops::softmax::cpu {
namespace {

template <Kind kKind, int kDegree, bool kStream, typename In, typename Out>
class FlatRows {
  using V = VecF32;
  static_assert(kGroup == V::size);
  static constexpr bool kKeep = kKind == Kind::softmax;

  struct Group {
    int count = 0;  // 0: nothing to write
    const In* x;
    Out* out;
    // softmax: 1 / sum; log_softmax: the scaled maximum, and the lse less that.
    FlatOperand<V> factor, log_sum;
  };

 public:
  static bool takes(const ForwardParams& p) {
    const bool lines = !kStream || reinterpret_cast<uintptr_t>(p.out.data) % 64 == 0;
    return rows_follow(p.shape, p.x) && (!p.out || rows_follow(p.shape, p.out)) && lines;
  }

  explicit FlatRows(const ForwardParams& p) : p_(p), n_(p.shape.n), scale_(plain_scale(p.scale)) {}

  void operator()(int64_t begin, int64_t end) const {
    const int64_t floats = kGroup * n_, copies = (floats * int64_t(sizeof(In)) + 63) / 64 * 64;
    auto* values = static_cast<float*>(
        thread_scratch(size_t(floats) * sizeof(float) + size_t(copies) +
                       size_t(floats) * sizeof(Out) + RowScratch<V>::bytes(n_)));
    auto* x = reinterpret_cast<In*>(values + floats);
    auto* out = reinterpret_cast<Out*>(reinterpret_cast<char*>(x) + copies);
    auto* spare = reinterpret_cast<float*>(out + floats);

    const int64_t whole = p_.shape.rows / kGroup, stop = end < whole ? end : whole;
    Group groups[2];
    V most[kGroup];
    if (begin < stop) look(input(begin), most);
    for (int64_t g = begin; g < stop; ++g) {
      Group &now = groups[g & 1], &before = groups[~g & 1];
      now.x = input(g);
      now.out = output(g);
      const In* next = input(g + 1 < stop ? g + 1 : g);
      if (before.count > 0) group<true>(g, kGroup, next, now, before, most, values, spare);
      else group<false>(g, kGroup, next, now, before, most, values, spare);
    }
    for (Group& g : groups) write(g, values);
    if (kStream) store_fence();
    if (stop < end) last(values, x, out, spare);
  }

 private:
  const In* input(int64_t g) const { return static_cast<const In*>(p_.x.data) + g * kGroup * n_; }
  Out* output(int64_t g) const {
    return kKind == Kind::logsumexp ? nullptr : static_cast<Out*>(p_.out.data) + g * kGroup * n_;
  }

  void look(const In* x, V* most) const {
    FlatMax<V> row;
    walk_flat<V>(
        kGroup, n_, [&](int64_t at, auto rows) { row.add(rows, V::load(x + at * kGroup)); },
        [&](int r) { most[r] = row.end(); });
  }

  // What is written of vector `at`, which is that of `rows`.
  template <typename Rows>
  void put(const Group& g, const float* values, int64_t at, Rows rows) const {
    if constexpr (kKind != Kind::logsumexp) {
      V v;
      if constexpr (kKeep) v = V::load(values + at * kGroup) * rows.of(g.factor);
      else
        v = fma(V::load(g.x + at * kGroup), V(scale_.scale), V(0.f) - rows.of(g.factor)) -
            rows.of(g.log_sum);
      if constexpr (kStream) v.stream(g.out + at * kGroup);
      else v.store(g.out + at * kGroup);
    }
  }

  void write(Group& g, const float* values) const {
    walk_flat<V>(g.count, n_, [&](int64_t at, auto rows) { put(g, values, at, rows); }, [](int) {});
    g.count = 0;
  }

  // Takes `most`, the maxima of `now`, and leaves those of `next`.
  template <bool kBefore>
  void group(int64_t g, int count, const In* next, Group& now, Group& before, V* most,
             float* values, float* spare) const {
    const V peak = transpose_reduce(most, [](V a, V b) { return max(a, b); });
    const V shift = peak * V(scale_.base2);
    const V low(-infinity<V>()), zero(0.f), base2(scale_.base2);
    const bool huge = any(V(kHugeShift) < shift) || any(both(shift < V(-kHugeShift), low < peak));
    FlatOperand<V> relative;
    select(peak == low, zero, kExact<kKind> ? peak : shift).store(relative.of);

    FlatLanes<V> lanes;
    FlatSum<V> sum;
    FlatMax<V> ahead;
    const auto exponentials = [&](int64_t at, V from) {
      const V v = V::load(now.x + at * kGroup);
      const V e = exp2<kDegree>(kExact<kKind> ? (v - from) * base2 : fma(v, base2, zero - from));
      if constexpr (kKeep) e.store(values + at * kGroup);
      return e;
    };
    walk_flat<V>(
        count, n_,
        [&](int64_t at, auto rows) {
          if (at * int64_t(sizeof(In)) % 4 == 0) prefetch_line(next + at * kGroup);
          ahead.add(rows, V::load(next + at * kGroup));
          if constexpr (kBefore) put(before, values, at, rows);
          const V e = exponentials(at, rows.of(relative));
          sum.add(rows, sum.ahead() + e, e);
        },
        [&](int r) {
          sum.end(r, lanes);
          most[r] = ahead.end();
        });
    before.count = 0;
    if (huge) {
      RowCursor again(p_.shape, g * kGroup);
      for (int r = 0; r < count; ++r, again.next())
        score_row<V>(p_, again, RowScratch<V>(spare, n_), false);
      return;
    }
    V sums[kGroup];
    lanes.turned(count, n_, sums);
    const V total = transpose_reduce(sums, [](V a, V b) { return a + b; });
    if constexpr (kKeep) reciprocals(p_, total).store(now.factor.of);
    if (!kKeep || p_.lse)
      finish_logs<kKind>(p_, scale_, RowCursor(p_.shape, g * kGroup), count, peak, shift, total,
                         kKeep ? nullptr : now.factor.of, now.log_sum.of);
    now.count = count;
  }

  // The last rows, too few for a group: in copies that have the room of one.
  void last(float* values, In* x, Out* out, float* spare) const {
    const int64_t g = p_.shape.rows / kGroup, floats = kGroup * n_;
    const int count = int(p_.shape.rows % kGroup);
    const int64_t there = count * n_;
    __builtin_memcpy(x, input(g), size_t(there) * sizeof(In));
    __builtin_memset(static_cast<void*>(x + there), 0, size_t(floats - there) * sizeof(In));
    Group now, none;
    now.x = x;
    now.out = out;
    V most[kGroup];
    look(x, most);
    group<false>(g, count, x, now, none, most, values, spare);
    if (now.count == 0) return;  // written row by row
    write(now, values);
    if (kKind != Kind::logsumexp) __builtin_memcpy(output(g), out, size_t(there) * sizeof(Out));
  }

  const ForwardParams& p_;
  const int64_t n_;
  const PlainScale scale_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
