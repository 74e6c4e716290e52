// Softmax and its k greatest in one read of the row (Online normalizer calculation for softmax,
// section 4), for any k.
//
// The k-th greatest of the maxima of many groups bounds the k-th greatest of all from below. What
// reaches that bound, little more than k elements for most rows, is ranked one against all.
#include <type_traits>

#include "softmax/cpu/relatives/kernels.h"
#include "softmax/cpu/relatives/rows.h"
#include "softmax/cpu/relatives/topk_lanes.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

// More candidates than this are sorted.
constexpr int64_t kMaxRanked = 1024;
template <typename V>
class Topk {
 public:
  using S = typename V::Scalar;

  explicit Topk(const TopkParams& p) : p_(p), n_(p.shape.n), k_(p.k) {}

  void forward() const {
    if (plain_topk(p_) && k_ >= 1 && k_ <= kLaneTopk && grouped()) return;
    for_rows<V>(p_.shape, 4, false, [this](const RowCursor& at, S* scratch, int64_t pitch) {
      general(at, scratch, pitch);
    });
  }

  void row(const RowCursor& at) const {
    const int64_t pitch = padded<V>(n_);
    row(at, static_cast<S*>(thread_scratch(size_t(4 * pitch) * sizeof(S))), pitch);
  }

  void backward() const {
    for_rows<V>(p_.shape, 1, streams(p_.shape, p_.out),
                [this](const RowCursor& at, S* s, int64_t) { gradient(at, s); });
  }

 private:
  // Calls f with a value of x's type. fp64 from fp64, fp32 from the rest: half as many kernels as
  // there are pairs; false for the others.
  template <typename F>
  bool of_own_precision(F f) const {
    return with_float(p_.x.dtype, [&](auto t) {
      if constexpr ((sizeof(t) == 8) == (sizeof(S) == 8)) return f(t);
      else return false;
    });
  }

  bool grouped() const {
    return of_own_precision([&](auto t) {
      if (k_ == 1) topk_first(p_);
      else for_groups<V>(p_, TopkLanes<V, decltype(t)>(p_));
      return true;
    });
  }

  // Scratch: scores, tops, then per candidate its score and its place in the row.
  void general(const RowCursor& at, S* scratch, int64_t pitch) const {
    if (!unscored(at, scratch, pitch)) row(at, scratch, pitch);
  }

  // What may be among the k greatest, by rising index.
  struct Candidates {
    S* score;
    S* place;
    int64_t count = 0;
  };

  // Where a row's results go.
  struct Out {
    const TopkParams& p;
    int64_t values_at;
    int64_t* indices;

    Out(const TopkParams& params, const RowCursor& cursor)
        : p(params),
          values_at(cursor.offset(p.values.row_stride)),
          indices(static_cast<int64_t*>(p.indices.data) + cursor.offset(p.indices.row_stride)) {}
    int64_t& index(int64_t i) const { return indices[i * p.indices_stride]; }

    void places(int64_t k, const S* order) const {
      if (p.indices_stride == 1)
        for (int64_t i = 0; i < k; ++i) indices[i] = int64_t(order[i]);
      else
        for (int64_t i = 0; i < k; ++i) index(i) = int64_t(order[i]);
    }

    template <typename F>
    void values(int64_t k, F value) const {
      with_float(p.values.dtype, [&](auto t) {
        using T = decltype(t);
        T* to = static_cast<T*>(p.values.data) + values_at;
        int64_t j = 0;
        if (p.values_stride == 1) {
          for (; j + V::size <= k; j += V::size) value(j).store(to + j);
          if (j < k) value(j).store(to + j, int(k - j));
          return;
        }
        T lane[V::size];
        for (; j < k; j += V::size) {
          value(j).store(lane);
          for (int64_t i = 0; i < V::size && j + i < k; ++i)
            to[(j + i) * p.values_stride] = lane[i];
        }
      });
    }
  };

  // A long row by itself, from where it lies; false where that cannot be.
  bool unscored(const RowCursor& cursor, S* scratch, int64_t pitch) const {
    if (!plain_topk(p_)) return false;
    return of_own_precision([&](auto t) {
      using T = decltype(t);
      const RowReader<V, T> reader(p_);
      const T* x = static_cast<const T*>(p_.x.data) + cursor.offset(p_.x.row_stride);
      Tops<V> tops{scratch + pitch, reader.step() / V::size, reader.tops()};
      const bool few = tops.count < 4 * k_;  // maxima: the row bounds its k-th greatest better
      if (few && (!std::is_same_v<T, S> || n_ % V::size != 0)) return false;
      alignas(64) S most[kNetwork], sum[kNetwork];
      S from(0);
      reader.scan(x, from, most, sum, tops.values);
      V tops_most = V::load(most);
      for (int i = V::size; i < kNetwork; i += V::size)
        tops_most = max(V::load(most + i), tops_most);
      const S greatest = hmax(tops_most);
      if (!(greatest > reader.kLowest && greatest < infinity<V>())) return false;
      if (greatest < -reader.kNear || greatest > reader.kNear)
        reader.scan(x, from = greatest, most, sum, tops.values);
      double total = 0;
      for (int i = 0; i < kNetwork; i += V::size) total += double(hsum(V::load(sum + i)));
      if (!(total < double(infinity<V>()))) return false;
      Candidates c{scratch + 2 * pitch, scratch + 3 * pitch};
      S least = -infinity<V>();
      if (!few) least = bound(tops.values, tops.count);
      else if constexpr (std::is_same_v<T, S>) least = bound(x, n_);
      if (least == -infinity<V>() ||
          !candidates([&](int64_t j) { return reader.at(x, j); }, tops, least, c))
        return false;
      const Out out(p_, cursor);
      rank(c, out, scratch, scratch + pitch);
      finish(cursor, out, scratch, greatest, from, total);
      return true;
    });
  }

  void row(const RowCursor& cursor, S* s, int64_t pitch) const {
    // Four groups per wanted element keep the bound close, so that few candidates are in vain.
    const int64_t vectors = n_ / (4 * k_);
    Tops<V> tops{s + pitch, vectors < 1 ? 1 : vectors < 64 ? vectors : 64};
    const Row<V> r = load_row<V>(p_, p_.x, cursor, scale_of<V>(p_, cursor), s, &tops);
    const Out out(p_, cursor);
    if (r.broken() || r.empty()) {
      const bool zero = r.empty() && p_.zero_masked_rows;
      if (p_.lse) cursor.at<S>(p_.lse) = r.empty() ? -infinity<V>() : S(__builtin_nanf(""));
      for (int64_t i = 0; i < k_; ++i) out.index(i) = i;
      return out.values(k_, [=](int64_t) { return V(zero ? S(0) : S(__builtin_nanf(""))); });
    }
    const V m(r.max);
    double total = 0;
    if (!p_.renormalize)
      total = sum_over<V>(n_, [&](int64_t j) { return exp_score(V::load(s + j) - m); });
    const S least = k_ == 1 ? r.max : bound(tops.values, tops.count);
    Candidates c{s + 2 * pitch, s + 3 * pitch};
    if (least == -infinity<V>() || n_ > kExactPlaces ||
        !candidates([&](int64_t j) { return j < n_ ? V::load(s + j) : V(-infinity<V>()); }, tops,
                    least, c)) {
      sort(s, least, out);
    } else {
      rank(c, out, s, s + pitch);
    }
    finish(cursor, out, s, r.max, r.max, total);
  }

  // From the k greatest scores, in order, the greatest of all and the sum of e^(score - from).
  void finish(const RowCursor& cursor, const Out& out, S* scores, S max, S from,
              double total) const {
    const V most(max);
    for (int64_t i = 0; i < V::size; ++i) scores[k_ + i] = -infinity<V>();
    const auto weight = [&](int64_t j) { return exp_score(V::load(scores + j) - most); };
    double factor = double(hmax(exp_term(most - V(from)))) / total;
    if (p_.renormalize) factor = 1 / sum_over<V>(k_, weight);
    if (p_.lse) cursor.at<S>(p_.lse) = S(double(max) - __builtin_log(factor));
    out.values(k_, [&](int64_t j) { return weight(j) * V(S(factor)); });
  }

  // A score that at least k of the values, whole vectors of them, reach, and if it can be found
  // quickly, few more.
  S bound(const S* values, int64_t count) const {
    const V low(-infinity<V>());
    V least(infinity<V>()), most = low;
    int64_t finite = 0;
    for (int64_t j = 0; j < count; j += V::size) {
      const V v = V::load(values + j);
      const auto in = low < v;  // the lanes beyond the row's end are -inf too
      least = min(least, select(in, v, least));
      most = max(most, v);
      finite += __builtin_popcount(lane_bits(in));
    }
    if (finite < k_) return -infinity<V>();
    // Where the k-th would be if all were spread evenly; every third time halfway.
    S below = -hmax(V(S(0)) - least), above = hmax(most);
    const int64_t wanted = k_ + k_ / 16 + 1;
    int64_t reach_above = 1;
    for (int i = 0; i < 24 && finite > k_ + k_ / 8 + 2; ++i) {
      const S even = S(finite - wanted) / S(finite - reach_above);
      const S share = i % 3 == 2 || even > S(0.95) ? S(0.5) : even;
      const S middle = below + (above - below) * share;
      if (!(middle > below && middle < above)) break;
      const V at(middle);
      int64_t short_of = 0;
      for (int64_t j = 0; j < count; j += V::size)
        short_of += __builtin_popcount(lane_bits(V::load(values + j) < at));
      const int64_t reach = count - short_of;
      if (reach >= k_) {
        below = middle;
        finite = reach;
      } else {
        above = middle;
        reach_above = reach;
      }
    }
    return below;
  }

  // Elements from `least` on; false where they are too many to rank one against all.
  template <typename F>
  bool candidates(F vector_at, const Tops<V>& tops, S least, Candidates& c) const {
    const S low = __is_same(S, double) ? S(__builtin_nextafter(least, -__builtin_inf()))
                                       : S(__builtin_nextafterf(float(least), -__builtin_inff()));
    c.count = collect<V>(n_, k_, vector_at, tops.values, tops.step * V::size, low, kMaxRanked,
                         c.score, c.place);
    return c.count <= kMaxRanked;
  }

  // The k first candidates go to `scores`, in order; `order` is scratch for as many as there are.
  // Ties within a vector of candidates, rare where scores have many bits, are looked for only where
  // the ranks do not add up.
  void rank(const Candidates& c, const Out& out, S* scores, S* order) const {
    const bool likely = size_of(p_.x.dtype) < 4;
    const int64_t sum = place(c, scores, order, likely);
    if (!likely && sum != c.count * (c.count - 1) / 2) place(c, scores, order, true);
    out.places(k_, order);
  }

  // A candidate's rank is how many come before it: greater ones, and equal ones of lower index
  // (those of the same vector if `ties`). A vector of candidates is held against one after the
  // other, in sums that do not wait for each other. Returns the sum of the ranks.
  int64_t place(const Candidates& c, S* scores, S* order, bool ties) const {
    S* const score = c.score;
    constexpr int kSums = V::size < 4 ? V::size : 4;
    const V one(S(1)), zero(S(0));
    for (int64_t i = 0; i < V::size; ++i) score[c.count + i] = -infinity<V>();
    const int64_t padded = (c.count + V::size - 1) / V::size * V::size;
    int64_t all = 0;
    for (int64_t b = 0; b < c.count; b += V::size) {
      const V own = V::load(score + b);
      // Of those of earlier vectors all but the lesser come before.
      V sums[4] = {V(S(b)), zero, zero, zero};
      const auto over = [&](int64_t begin, int64_t end, auto next) {
        for (int64_t j = begin; j < end; j += kSums)
          for (int u = 0; u < kSums; ++u) sums[u] = next(sums[u], V(score[j + u]));
      };
      over(0, b, [&](V sum, V other) { return select(other < own, sum - one, sum); });
      over(b, padded, [&](V sum, V other) { return select(own < other, sum + one, sum); });
      for (int i = 0; ties && i + 1 < V::size; ++i) {
        const auto same = own == V(score[b + i]);
        V& sum = sums[i % kSums];
        sum = select(V::first(i + 1), sum, select(same, sum + one, sum));
      }
      alignas(64) S before[V::size];
      int32_t ranks[V::size];
      ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(before);
      for (int i = 0; i < V::size; ++i) ranks[i] = int32_t(before[i]);
      const int count = int(c.count - b < V::size ? c.count - b : V::size);
      for (int i = 0; i < count; ++i) {
        const int64_t rank = ranks[i];
        scores[rank] = score[b + i];
        order[rank] = c.place[b + i];
        all += rank;
      }
    }
    return all;
  }

  // Many candidates, or rows too long for places in S: by the standard library.
  void sort(S* s, S least, const Out& out) const {
    Scored<S>* const all = new Scored<S>[n_];
    int64_t count = 0;
    for (int64_t j = 0; j < n_; ++j)
      if (s[j] >= least) all[count++] = {s[j], j};
    select_first(all, count, k_);
    for (int64_t i = 0; i < k_; ++i) {
      s[i] = all[i].score;
      out.index(i) = all[i].index;
    }
    delete[] all;
  }

  // dx = p (dv 1[chosen] - sum dv v): softmax's, of a gradient that is 0 but for k elements.
  // Indices that point out of the row, which no forward gives, choose nothing.
  void gradient(const RowCursor& cursor, S* s) const {
    const S scale = scale_of<V>(p_, cursor), lse = cursor.at<S>(p_.lse);
    const bool stream = streams(p_.shape, p_.out);
    load_row<V>(p_, p_.x, cursor, scale, s);
    const int64_t* indices =
        static_cast<const int64_t*>(p_.indices.data) + cursor.offset(p_.indices.row_stride);
    const auto index = [&](int64_t i) { return indices[i * p_.indices_stride]; };
    const auto in_row = [&](int64_t j) { return j >= 0 && j < n_; };
    const V from(lse), zero(S(0)), low(-infinity<V>());
    // A row without a score above -inf has no gradient.
    if (lse == -infinity<V>())
      return emit<V>(p_.shape, p_.out, cursor, stream, [=](int64_t) { return zero; });
    with_float(p_.values.dtype, [&](auto t) {
      using T = decltype(t);
      const T* dv = static_cast<const T*>(p_.values.data) + cursor.offset(p_.values.row_stride);
      const auto chosen = [&](int64_t i) {
        const int64_t j = index(i);
        return in_row(j) ? hmax(exp_below(V(s[j]) - from)) : S(0);
      };
      const auto grad = [&](int64_t i) {
        S lane[V::size];
        V::load(dv + i * p_.values_stride, 1).store(lane);
        return lane[0];
      };
      double inner = 0;
      for (int64_t i = 0; i < k_; ++i) {
        const S v = chosen(i);
        if (v != 0) inner += double(v) * double(grad(i));
      }
      const V factor(S(p_.renormalize ? 0.0 : -inner) * scale);
      emit<V>(p_.shape, p_.out, cursor, stream, [=](int64_t j) {
        const V v = V::load(s + j);
        return select(v == low, zero, exp_below(v - from) * factor);
      });
      for (int64_t i = 0; i < k_; ++i) {
        if (!in_row(index(i))) continue;
        const S v = chosen(i);
        const S ds = v == 0 ? S(0) : v * (grad(i) - S(inner)) * scale;
        store_element<V>(p_.shape, p_.out, cursor, index(i), ds);
      }
    });
  }

  const TopkParams& p_;
  int64_t n_, k_;
};

// Calls f with a vector of the type that sums are kept in.
template <typename F>
void with_accumulator(const TopkParams& p, F f) {
  const DType other = p.backward ? p.out.dtype : p.values.dtype;
  if (accumulator(p.x.dtype, other) == DType::f64) f(VecF64(0.));
  else f(VecF32(0.f));
}

}  // namespace

void topk_row(const TopkParams& p, int64_t row) {
  with_accumulator(p, [&](auto v) { Topk<decltype(v)>(p).row(RowCursor(p.shape, row)); });
}

void topk(const TopkParams& p) {
  with_accumulator(p, [&](auto v) {
    if (p.backward) Topk<decltype(v)>(p).backward();
    else Topk<decltype(v)>(p).forward();
  });
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
