// Softmax and its k greatest for small k: rows are read by themselves, and compared a row a lane.
//
// A row is read from memory once, in pieces that stay in L1: their maxima, then their exponentials
// against the greatest so far of the same lane. The k-th greatest of 16 such maxima is a bound that
// k elements reach and few more, 11 of any number for k = 8. What reaches it is collected, and a
// sorting network puts it in order: 60 comparisons of vectors for as many rows as there are lanes,
// where one row's would be latency alone. Results do not depend on a row's place in its group.
#pragma once

#include "cpu/transpose.h"
#include "softmax/cpu/relatives/rows.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int64_t kLaneTopk = 8;  // greatest k: of 16 maxima half
inline constexpr int kNetwork = 16;      // maxima of a row, and candidates that can be sorted

// Batcher's odd-even merge sort.
struct Network {
  static constexpr int kPairs = 63;
  int8_t first[kPairs], second[kPairs];

  constexpr Network() : first(), second() {
    int count = 0;
    for (int p = 1; p < kNetwork; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < kNetwork; j += 2 * k)
          for (int i = 0; i < k && i + j + k < kNetwork; ++i)
            if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) {
              first[count] = int8_t(i + j);
              second[count++] = int8_t(i + j + k);
            }
  }
};

// order(i, j), i < j, leaves the first of two places at i.
template <typename F>
inline void sort_network(F order) {
  constexpr Network network;
#pragma GCC unroll 63
  for (int c = 0; c < Network::kPairs; ++c) order(network.first[c], network.second[c]);
}

// Places in a row are kept in the accumulation type, which is exact so far.
inline constexpr int64_t kExactPlaces = int64_t{1} << 24;

// Whether rows can be taken from where they lie.
inline bool plain_topk(const TopkParams& p) {
  return p.scale == 1 && !p.mask && !p.lengths && !p.row_scale && !p.causal &&
         p.values_stride == 1 && p.indices_stride == 1 && contiguous(p.shape, p.x) &&
         p.shape.n < kExactPlaces;
}

// Reads a row once from memory, in pieces that stay in L1.
template <typename V, typename T>
class RowReader {
 public:
  using S = typename V::Scalar;

  static constexpr int64_t kMostPieces = 64;
  static constexpr S kLowest = S(sizeof(S) == 8 ? -__DBL_MAX__ : -__FLT_MAX__);

  explicit RowReader(const TopkParams& p)
      : n_(p.shape.n),
        step_((n_ + kMostPieces * kUnit - 1) / (kMostPieces * kUnit) * kUnit),
        pieces_((n_ + step_ - 1) / step_) {}

  int64_t step() const { return step_; }  // elements in a piece
  int64_t pieces() const { return pieces_; }
  int64_t tops() const { return pieces_ * V::size; }

  // The vector from j on, -inf beyond the row's end.
  V at(const T* x, int64_t j) const {
    if (j + V::size <= n_) return V::load(x + j);
    const V low(-infinity<V>());
    return j < n_ ? select(V::first(int(n_ - j)), V::load(x + j, int(n_ - j)), low) : low;
  }

  // The maxima of kNetwork parts of the row, their sums of exponentials against them, and the
  // lane maxima of each piece.
  void scan(const T* x, S* maxima, S* sums, S* tops) const {
    const V zero(S(0)), low(-infinity<V>());
    V most[kParts], sum[kParts], lost[kParts];
    for (int u = 0; u < kParts; ++u) {
      most[u] = V(kLowest);
      sum[u] = lost[u] = zero;
    }
    for (int64_t c = 0; c < pieces_; ++c) {
      V top[kParts], any_top = low;
      for (int u = 0; u < kParts; ++u) top[u] = low;
      over(x, c * step_, (c + 1) * step_, [&](int u, V v, const T*) { top[u] = max(v, top[u]); });
      for (int u = 0; u < kParts; ++u) {
        any_top = max(top[u], any_top);
        top[u] = max(top[u], most[u]);
      }
      any_top.store(tops + c * V::size);
      add(x, c, top, most, sum, lost);
    }
    for (int u = 0; u < kParts; ++u) {
      most[u].store(maxima + u * V::size);
      sum[u].store(sums + u * V::size);
    }
  }

  // The same with the place of each maximum, the first of equal ones, instead of the tops.
  void scan_first(const T* x, S* maxima, S* sums, S* places) const {
    const V zero(S(0));
    V most[kParts], sum[kParts], lost[kParts], here[kParts], first[kParts];
    alignas(64) S lanes[kNetwork];
    for (int i = 0; i < kNetwork; ++i) lanes[i] = S(i);
    for (int u = 0; u < kParts; ++u) {
      most[u] = V(kLowest);
      sum[u] = lost[u] = first[u] = zero;
      here[u] = V::load(lanes + u * V::size);
    }
    for (int64_t c = 0; c < pieces_; ++c) {
      V top[kParts];
      for (int u = 0; u < kParts; ++u) top[u] = most[u];
      over(x, c * step_, (c + 1) * step_, [&](int u, V v, const T*) {
        first[u] = select(top[u] < v, here[u], first[u]);
        top[u] = max(v, top[u]);
        here[u] = here[u] + V(S(kNetwork));
      });
      add(x, c, top, most, sum, lost);
    }
    for (int u = 0; u < kParts; ++u) {
      most[u].store(maxima + u * V::size);
      sum[u].store(sums + u * V::size);
      first[u].store(places + u * V::size);
    }
  }

 private:
  static constexpr int kParts = kNetwork / V::size;  // vectors of a row's maxima
  static constexpr int64_t kUnit = 16 * kNetwork;
  static constexpr int64_t kAhead = 8192;  // bytes

  // Calls f(part, v) for the elements of a piece.
  template <typename F>
  void over(const T* x, int64_t begin, int64_t end, F f) const {
    int64_t j = begin;
    for (; j + kNetwork <= n_ && j < end; j += kNetwork)
      for (int u = 0; u < kParts; ++u) f(u, V::load(x + j + u * V::size), x + j);
    for (; j < end && j < n_; j += kNetwork)
      for (int u = 0; u < kParts; ++u) f(u, at(x, j + u * V::size), x + j);
  }

  // A piece's exponentials against `top`, which is `most` then.
  void add(const T* x, int64_t piece, const V* top, V* most, V* sum, V* lost) const {
    V part[kParts];
    for (int u = 0; u < kParts; ++u) part[u] = V(S(0));
    over(x, piece * step_, (piece + 1) * step_, [&](int u, V v, const T* from) {
      if (u == 0) prefetch(reinterpret_cast<const char*>(from) + kAhead);
      part[u] = part[u] + exp_below(v - top[u]);
    });
    for (int u = 0; u < kParts; ++u) {
      const V factor = exp_below(most[u] - top[u]);
      const V old = sum[u] * factor, term = part[u] - lost[u] * factor;
      sum[u] = old + term;
      lost[u] = (sum[u] - old) - term;
      most[u] = top[u];
    }
  }

  int64_t n_, step_, pieces_;
};

template <typename V, typename T>
class TopkLanes {
 public:
  using S = typename V::Scalar;

  explicit TopkLanes(const TopkParams& p) : p_(p), n_(p.shape.n), k_(int(p.k)), reader_(p) {}

  // `general` takes a row that has too many candidates or none, a NaN or an infinity.
  template <typename F>
  void run(const F& general) const {
    const int64_t rows = p_.shape.rows, fit = kTogether / n_;
    const int64_t group = fit < 1 ? 1 : fit < V::size ? fit : V::size;
    parallel_for(0, (rows + group - 1) / group, rows_per_task(n_ * group),
                 [&](int64_t begin, int64_t end) {
                   RowCursor cursor(p_.shape, begin * group);
                   for (int64_t row = begin * group; row < rows && row < end * group; row += group)
                     rows_of(cursor, int(rows - row < group ? rows - row : group), general);
                 });
  }

 private:
  static constexpr int64_t kTogether = 65536;  // elements of a group, which stay in L2
  static constexpr int64_t kRoom = kNetwork + 5 * V::size;
  static constexpr S kLowest = RowReader<V, T>::kLowest;

  // What a group keeps of its rows.
  struct Group {
    alignas(64) S most[V::size][kNetwork], sum[V::size][kNetwork];
    alignas(64) S top[V::size][RowReader<V, T>::kMostPieces][V::size];
    alignas(64) S score[V::size][kRoom], place[V::size][kRoom];
  };

  // Elements above `least`, by rising index; more than kNetwork: not all of them.
  int64_t collect(const T* x, Group& g, int r, S least) const {
    const V low(least);
    alignas(64) S lanes[V::size];
    for (int i = 0; i < V::size; ++i) lanes[i] = S(i);
    const V lane = V::load(lanes);
    S *const score = g.score[r], *const place = g.place[r];
    int64_t count = 0;
    const int64_t step = reader_.step();
    for (int64_t c = 0; c < reader_.pieces() && count <= kNetwork; ++c) {
      if (!any(low < V::load(g.top[r][c]))) continue;
      const int64_t end = (c + 1) * step < n_ ? (c + 1) * step : n_;
      for (int64_t j = c * step; j < end && count <= kNetwork; j += 4 * V::size) {
        V v[4];
        for (int i = 0; i < 4; ++i) v[i] = reader_.at(x, j + i * V::size);
        if (!any(low < max(max(v[0], v[1]), max(v[2], v[3])))) continue;
        for (int i = 0; i < 4; ++i) {
          const unsigned in = lane_bits(low < v[i]);
          compress(lane + V(S(j + i * V::size)), in, place + count);
          count += compress(v[i], in, score + count);
        }
      }
    }
    for (int64_t i = count; i < kNetwork; i += V::size) {
      V(-infinity<V>()).store(score + i);
      V(S(0)).store(place + i);
    }
    return count;
  }

  // Lane r of rows[i] = from[r][i].
  template <int kColumns>
  static void turn(const S (*from)[kColumns], V* rows) {
    for (int u = 0; u < kNetwork; u += V::size) {
      for (int r = 0; r < V::size; ++r) rows[u + r] = V::load(from[r] + u);
      fastops::cpu::transpose(rows + u);
    }
  }

  // `count` rows from the cursor on, which it moves.
  template <typename F>
  void rows_of(RowCursor& cursor, int count, const F& general) const {
    Group& g = *static_cast<Group*>(thread_scratch(sizeof(Group)));
    const RowCursor start = cursor;
    const T* x[V::size];
    for (int r = 0; r < count; ++r, cursor.next()) {
      x[r] = static_cast<const T*>(p_.x.data) + cursor.offset(p_.x.row_stride);
      if (k_ == 1) reader_.scan_first(x[r], g.most[r], g.sum[r], g.place[r]);
      else reader_.scan(x[r], g.most[r], g.sum[r], g.top[r][0]);
    }
    V tops[kNetwork], sums[kNetwork], score[kNetwork], place[kNetwork];
    turn(g.most, tops);
    turn(g.sum, sums);
    V all = tops[0], total(S(0));
    for (int i = 1; i < kNetwork; ++i) all = max(tops[i], all);
    for (int i = 0; i < kNetwork; ++i) total = fma(sums[i], exp_below(tops[i] - all), total);
    unsigned done = lane_bits(both(total < V(infinity<V>()), V(kLowest) < all));
    if (k_ == 1) {
      turn(g.place, place);
      V first(infinity<V>());
      for (int i = 0; i < kNetwork; ++i) {
        first = min(first, select(tops[i] == all, place[i], first));
        score[i] = all;
      }
      place[0] = first;
    } else {
      done &= greatest(x, g, count, tops, score, place);
    }
    write(start, count, done, score, place, total);
    RowCursor again = start;
    for (int r = 0; r < count; ++r, again.next())
      if (!(done >> r & 1)) general(again);
  }

  // The k greatest of every row, in order, and which rows have been done. `tops`: the maxima of
  // kNetwork parts of each.
  unsigned greatest(const T* const* x, Group& g, int count, V* tops, V* score, V* place) const {
    sort_network([&](int i, int j) {
      const V a = tops[i], b = tops[j];
      tops[i] = max(a, b);
      tops[j] = min(a, b);
    });
    const V bound = tops[k_ - 1];
    unsigned done = lane_bits(V(kLowest) < bound);
    // Below the bound by a rounding: what is above this may include a few more.
    const V tiny(S(sizeof(S) == 8 ? 0x1p-1022 : 0x1p-126)),
        eps(S(sizeof(S) == 8 ? 0x1p-51 : 0x1p-22));
    alignas(64) S least[V::size];
    ((bound - magnitude(bound) * eps) - tiny).store(least);
    for (int r = 0; r < count; ++r)
      if (collect(x[r], g, r, least[r]) > kNetwork) done &= ~(1u << r);

    turn(g.score, score);
    turn(g.place, place);
    sort_network([&](int i, int j) {
      const V a = score[i], b = score[j], pa = place[i], pb = place[j];
      const auto after = a < b, same = a == b;
      const V first = select(same, min(pa, pb), pa), last = select(same, max(pa, pb), pb);
      score[i] = max(a, b);
      score[j] = min(a, b);
      place[i] = select(after, pb, first);
      place[j] = select(after, pa, last);
    });
    return done;
  }

  void write(RowCursor cursor, int count, unsigned done, const V* score, const V* place,
             V total) const {
    V value[kLaneTopk];
    for (int i = 0; i < kLaneTopk; ++i) value[i] = exp_below(score[i] - score[0]);
    if (p_.renormalize) {
      total = V(S(0));
      for (int i = 0; i < k_; ++i) total = total + value[i];
    }
    const V factor = V(S(1)) / total;
    constexpr int kBlocks = (kLaneTopk + V::size - 1) / V::size;
    V rows[kBlocks * V::size];
    for (int i = 0; i < kBlocks * V::size; ++i)
      rows[i] = i < kLaneTopk ? value[i] * factor : V(S(0));
    for (int b = 0; b < kBlocks; ++b) fastops::cpu::transpose(rows + b * V::size);
    alignas(64) S lse[V::size], places[kLaneTopk][V::size];
    (score[0] + log(total)).store(lse);
    for (int i = 0; i < k_; ++i) place[i].store(places[i]);
    with_float(p_.values.dtype, [&](auto t) {
      using Out = decltype(t);
      for (int r = 0; r < count; ++r, cursor.next()) {
        if (!(done >> r & 1)) continue;
        Out* to = static_cast<Out*>(p_.values.data) + cursor.offset(p_.values.row_stride);
        for (int b = 0; b * V::size < k_; ++b) {
          const int left = k_ - b * V::size;
          rows[b * V::size + r].store(to + b * V::size, left < V::size ? left : V::size);
        }
        int64_t* index =
            static_cast<int64_t*>(p_.indices.data) + cursor.offset(p_.indices.row_stride);
        for (int i = 0; i < k_; ++i) index[i] = int64_t(places[i][r]);
        if (p_.lse) cursor.at<S>(p_.lse) = lse[r];
      }
    });
  }

  const TopkParams& p_;
  int64_t n_;
  int k_;
  RowReader<V, T> reader_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
