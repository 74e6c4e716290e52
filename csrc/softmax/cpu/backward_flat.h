// Backward of short rows that end within vectors, by groups of flat.h: one loop applies a group and
// adds up the sums of the next one.
#pragma once

#include "cpu/scratch.h"
#include "softmax/cpu/backward_math.h"
#include "softmax/cpu/flat.h"

namespace fastops::softmax::cpu {
namespace {

template <typename Math, typename Y, typename G, typename D>
struct FlatBackward {
  using V = typename Math::V;
  using S = typename V::Scalar;

  struct Group {
    const Y* y;
    const G* dy;
    D* dx;

    Group after(int64_t elements) const { return {y + elements, dy + elements, dx + elements}; }
  };

  template <typename Rows>
  static void add(FlatSum<V>& sum, const Group& g, int64_t at, Rows rows) {
    const V y = V::load(g.y + at * V::size), dy = V::load(g.dy + at * V::size);
    sum.add(rows, Math::Lanes::add(sum.ahead(), y, dy), Math::Lanes::add(V(S(0)), y, dy));
  }

  template <bool streaming>
  static void put(const Group& g, int64_t at, V shift, V scale) {
    const int64_t j = at * V::size;
    const V d = Math::gradient(V::load(g.y + j), V::load(g.dy + j), shift, scale, V(S(0)));
    if constexpr (streaming) d.stream(g.dx + j);
    else d.store(g.dx + j);
  }

  static FlatLanes<V> sums(const Group& g, int count, int64_t n) {
    FlatLanes<V> lanes;
    FlatSum<V> sum;
    walk_flat<V>(
        count, n, [&](int64_t at, auto rows) { add(sum, g, at, rows); },
        [&](int r) { sum.end(r, lanes); });
    return lanes;
  }

  static FlatOperand<V> shifts(const FlatLanes<V>& lanes, int count, int64_t n) {
    V rows[V::size];
    lanes.turned(count, n, rows);
    FlatOperand<V> shifts;
    Math::reduce(rows, shifts.of);
    return shifts;
  }

  template <bool streaming>
  static void run_as(const PlainRows& p) {
    const int64_t step = V::size * p.n, whole = p.rows / V::size;
    const V scale{S(p.scale)};
    Group g{static_cast<const Y*>(p.y), static_cast<const G*>(p.dy), static_cast<D*>(p.dx)};
    FlatLanes<V> lanes;
    if (whole > 0) lanes = sums(g, V::size, p.n);
    for (int64_t i = 0; i < whole; ++i, g = g.after(step)) {
      const FlatOperand<V> shift = shifts(lanes, V::size, p.n);
      // Behind the last group it is summed once more, from cache.
      const Group next = i + 1 < whole ? g.after(step) : g;
      FlatSum<V> sum;
      walk_flat<V>(
          V::size, p.n,
          [&](int64_t at, auto rows) {
            fastops::cpu::prefetch(next.y + at * V::size + p.ahead / int64_t(sizeof(Y)));
            fastops::cpu::prefetch(next.dy + at * V::size + p.ahead / int64_t(sizeof(G)));
            add(sum, next, at, rows);
            put<streaming>(g, at, rows.of(shift), scale);
          },
          [&](int r) { sum.end(r, lanes); });
    }
    if (const int left = int(p.rows % V::size)) last(g, left, p.n, scale);
  }

  // The last rows, too few for a group: in copies that have the room of one.
  static void last(const Group& g, int count, int64_t n, V scale) {
    const int64_t room = V::size * n, there = count * n;
    auto* memory = static_cast<char*>(
        fastops::cpu::thread_scratch(size_t(room) * (sizeof(Y) + sizeof(G) + sizeof(D))));
    auto* y = reinterpret_cast<Y*>(memory);
    auto* dy = reinterpret_cast<G*>(y + room);
    auto* dx = reinterpret_cast<D*>(dy + room);
    __builtin_memcpy(y, g.y, size_t(there) * sizeof(Y));
    __builtin_memcpy(dy, g.dy, size_t(there) * sizeof(G));
    for (int64_t j = there; j < there + V::size; ++j) y[j] = Y{}, dy[j] = G{};
    const Group copies{y, dy, dx};
    const FlatOperand<V> shift = shifts(sums(copies, count, n), count, n);
    walk_flat<V>(
        count, n, [&](int64_t at, auto rows) { put<false>(copies, at, rows.of(shift), scale); },
        [](int) {});
    __builtin_memcpy(g.dx, dx, size_t(there) * sizeof(D));
  }

  static void run(const PlainRows& p, bool streaming) {
    streaming ? run_as<true>(p) : run_as<false>(p);
  }
};

}  // namespace
}  // namespace fastops::softmax::cpu
