// Softmax and its k greatest for small k: rows are read by themselves, and compared a row a lane.
//
// The k-th greatest of the maxima of a row's 16 parts is a bound that k elements reach and few
// more, 11 of any number for k = 8. What reaches it is collected, and a sorting network puts it in
// order: 60 comparisons of vectors for as many rows as there are lanes, where one row's would be
// latency alone. Results do not depend on a row's place in its group.
#pragma once

#include "cpu/transpose.h"
#include "softmax/cpu/relatives/row_reader.h"
#include "softmax/cpu/relatives/topk_groups.h"

namespace fastops::softmax::cpu {
namespace {

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

template <typename V, typename T>
class TopkLanes {
 public:
  using S = typename V::Scalar;

  explicit TopkLanes(const TopkParams& p) : p_(p), n_(p.shape.n), k_(int(p.k)), reader_(p) {}

  // `count` rows from the cursor on; which of them have been done: those with too many candidates
  // or none, with a NaN or with an infinity have not.
  unsigned operator()(const RowCursor& start, int count) const {
    Group& g = *static_cast<Group*>(thread_scratch(sizeof(Group)));
    const T* x[V::size];
    const auto scan = [&](int r, S from) {
      reader_.scan(x[r], from, g.most[r], g.sum[r], g.top[r][0]);
    };
    int64_t x_at[V::size];
    offsets(p_.shape, start, count, p_.x, x_at);
    for (int r = 0; r < count; ++r) {
      x[r] = static_cast<const T*>(p_.x.data) + x_at[r];
      scan(r, S(0));
    }
    V tops[kNetwork], sums[kNetwork], score[kNetwork], place[kNetwork];
    turn(g.most, tops);
    V all = tops[0];
    for (int i = 1; i < kNetwork; ++i) all = max(tops[i], all);
    const V low(kLowest), high(infinity<V>()), near(kNear);
    const auto usable = both(low < all, all < high), far = near < magnitude(all);
    V from(S(0));
    if (any(both(usable, far))) {
      from = select(far, all, from);
      alignas(64) S start_at[V::size];
      from.store(start_at);
      const unsigned again = lane_bits(both(usable, far));
      for (int r = 0; r < count; ++r)
        if (again >> r & 1) scan(r, start_at[r]);
    }
    turn(g.sum, sums);
    V total = sums[0];
    for (int i = 1; i < kNetwork; ++i) total = total + sums[i];
    unsigned done = lane_bits(both(usable, total < high));
    done &= greatest(x, g, count, tops, score, place);
    write(start, count, done, score, place, from, total);
    return done;
  }

 private:
  static constexpr int64_t kRoom = kNetwork + 5 * V::size;
  // One more than are used: rows' first would meet in the same set of the cache.
  static constexpr int64_t kPieces = RowReader<V, T>::most_pieces(kLaneTopk) + 1;
  static constexpr S kLowest = RowReader<V, T>::kLowest, kNear = RowReader<V, T>::kNear;

  // What a group keeps of its rows.
  struct Group {
    alignas(64) S most[V::size][kNetwork], sum[V::size][kNetwork];
    alignas(64) S top[V::size][kPieces][V::size];
    alignas(64) S score[V::size][kRoom], place[V::size][kRoom];
  };

  // Candidates of a row; more than kNetwork: not all of them.
  int64_t candidates(const T* x, Group& g, int r, S least) const {
    S *const score = g.score[r], *const place = g.place[r];
    const int64_t count = collect<V>(
        n_, k_, [&](int64_t j) { return reader_.at(x, j); }, g.top[r][0], reader_.step(), least,
        kNetwork, score, place);
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
      if (candidates(x[r], g, r, least[r]) > kNetwork) done &= ~(1u << r);

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

  void write(const RowCursor& start, int count, unsigned done, const V* score, const V* place,
             V from, V total) const {
    constexpr int kBlocks = (kLaneTopk + V::size - 1) / V::size;
    V rows[kBlocks * V::size];
    for (V& row : rows) row = V(S(0));
    V factor = exp_term(score[0] - from) / total;
    for (int i = 0; i < kLaneTopk; ++i) rows[i] = exp_score(score[i] - score[0]);
    if (p_.renormalize) {
      total = rows[0];
      for (int i = 1; i < k_; ++i) total = total + rows[i];
      factor = V(S(1)) / total;
    }
    for (int i = 0; i < kLaneTopk; ++i) rows[i] = rows[i] * factor;
    for (int b = 0; b < kBlocks; ++b) fastops::cpu::transpose(rows + b * V::size);
    alignas(64) S lse[V::size], places[kLaneTopk][V::size];
    (score[0] - log(factor)).store(lse);
    for (int i = 0; i < k_; ++i) place[i].store(places[i]);
    write_groups<V>(p_, start, count, done, lse, [&](int r, auto* to, int64_t* index) {
      for (int b = 0; b * V::size < k_; ++b) {
        const int left = k_ - b * V::size;
        rows[b * V::size + r].store(to + b * V::size, left < V::size ? left : V::size);
      }
      for (int i = 0; i < k_; ++i) index[i] = int64_t(places[i][r]);
    });
  }

  const TopkParams& p_;
  int64_t n_;
  int k_;
  RowReader<V, T> reader_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
