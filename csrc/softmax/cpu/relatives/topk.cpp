// Softmax and its k greatest in one read of the row (Online normalizer calculation for softmax,
// section 4), for any k.
//
// The k-th greatest of the maxima of many groups bounds the k-th greatest of all from below. What
// reaches that bound, little more than k elements for most rows, is ranked one against all.
#include "softmax/cpu/relatives/kernels.h"
#include "softmax/cpu/relatives/rows.h"
#include "softmax/cpu/relatives/topk_lanes.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

// More candidates than this are sorted.
constexpr int64_t kMaxRanked = 1024;
// Places in a row are kept in the accumulation type, which is exact so far.
constexpr int64_t kExactPlaces = int64_t{1} << 24;

template <typename V>
class Topk {
 public:
  using S = typename V::Scalar;

  explicit Topk(const TopkParams& p) : p_(p), n_(p.shape.n), k_(p.k) {}

  void forward() const {
    if (lanes()) return;
    // Scores, tops, then per candidate its score and its place in the row.
    for_rows<V>(p_.shape, 4, false, [this](const RowCursor& at, S* scratch, int64_t pitch) {
      row(at, scratch, scratch + pitch, {scratch + 2 * pitch, scratch + 3 * pitch});
    });
  }

  void backward() const {
    for_rows<V>(p_.shape, 1, streams(p_.shape, p_.out),
                [this](const RowCursor& at, S* s, int64_t) { gradient(at, s); });
  }

 private:
  // Whether topk_lanes.h could take the rows, and has.
  bool lanes() const {
    if (!can_lanes(p_)) return false;
    const auto general = [this](const RowCursor& at) {
      const int64_t pitch = padded<V>(n_);
      S* scratch = static_cast<S*>(thread_scratch(size_t(4 * pitch) * sizeof(S)));
      row(at, scratch, scratch + pitch, {scratch + 2 * pitch, scratch + 3 * pitch});
    };
    return with_float(p_.x.dtype, [&](auto t) {
      using T = decltype(t);
      // fp64 from fp64, fp32 from the rest: half as many kernels as there are pairs.
      if constexpr ((sizeof(T) == 8) == (sizeof(S) == 8)) {
        TopkLanes<V, T>(p_).run(general);
        return true;
      } else {
        return false;
      }
    });
  }

  // What may be among the k greatest, by rising index.
  struct Candidates {
    S* score;
    S* place;
    int64_t count = 0;
  };

  void row(const RowCursor& cursor, S* s, S* top_values, Candidates c) const {
    // Four groups per wanted element keep the bound close, so that few candidates are in vain.
    const int64_t vectors = n_ / (4 * k_);
    Tops<V> tops{top_values, vectors < 1 ? 1 : vectors < 64 ? vectors : 64};
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
      total = sum_over<V>(n_, [&](int64_t j) { return exp_below(V::load(s + j) - m); });
    const S least = k_ == 1 ? r.max : bound(tops);
    if (least == -infinity<V>() || n_ > kExactPlaces || !collect(s, tops, least, c)) {
      sort(s, least, out);
    } else {
      rank(c, out, s);
    }
    S* const scores = s;  // the k greatest are there now, in order
    for (int64_t i = 0; i < V::size; ++i) scores[k_ + i] = -infinity<V>();
    if (p_.renormalize)
      total = sum_over<V>(k_, [&](int64_t j) { return exp_below(V::load(scores + j) - m); });
    if (p_.lse) cursor.at<S>(p_.lse) = S(double(r.max) + __builtin_log(total));
    const V factor(S(1 / total));
    out.values(k_, [&](int64_t j) { return exp_below(V::load(scores + j) - m) * factor; });
  }

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

  // A score that at least k elements reach, and if it can be found quickly, few more.
  S bound(const Tops<V>& tops) const {
    const V low(-infinity<V>());
    V least(infinity<V>()), most = low;
    int64_t finite = 0;
    for (int64_t j = 0; j < tops.count; j += V::size) {
      const V v = V::load(tops.values + j);
      const auto in = low < v;  // the lanes beyond the row's end are -inf too
      least = min(least, select(in, v, least));
      most = max(most, v);
      finite += __builtin_popcount(lane_bits(in));
    }
    if (finite < k_) return -infinity<V>();
    S below = -hmax(V(S(0)) - least), above = hmax(most);
    for (int i = 0; i < 24 && finite > k_ + k_ / 8 + 2; ++i) {
      const S middle = below + (above - below) * S(0.5);
      if (!(middle > below && middle < above)) break;
      const V at(middle);
      int64_t short_of = 0;
      for (int64_t j = 0; j < tops.count; j += V::size)
        short_of += __builtin_popcount(lane_bits(V::load(tops.values + j) < at));
      const int64_t reach = tops.count - short_of;
      if (reach >= k_) {
        below = middle;
        finite = reach;
      } else {
        above = middle;
      }
    }
    return below;
  }

  // Elements from `least` on; false where they are too many to rank one against all. Groups whose
  // top does not reach it are passed over.
  bool collect(const S* s, const Tops<V>& tops, S least, Candidates& c) const {
    const V low(__is_same(S, double) ? S(__builtin_nextafter(least, -__builtin_inf()))
                                     : S(__builtin_nextafterf(float(least), -__builtin_inff())));
    alignas(64) S lanes[V::size];
    for (int i = 0; i < V::size; ++i) lanes[i] = S(i);
    const V lane = V::load(lanes);
    const int64_t step = tops.step * V::size;
    for (int64_t g = 0, begin = 0; begin < n_; g += V::size, begin += step) {
      if (!any(low < V::load(tops.values + g))) continue;
      const int64_t end = begin + step < n_ ? begin + step : n_;
      for (int64_t j = begin; j < end; j += V::size) {
        const V v = V::load(s + j);
        const auto in = low < v;
        compress(lane + V(S(j)), in, c.place + c.count);
        c.count += compress(v, in, c.score + c.count);
      }
      if (c.count > kMaxRanked) return false;
    }
    return true;
  }

  // A candidate's rank is how many come before it: greater ones, and equal ones of lower index.
  // The k first go to `scores`, in order.
  void rank(const Candidates& c, const Out& out, S* scores) const {
    S* const score = c.score;
    for (int64_t i = 0; i < V::size; ++i) score[c.count + i] = -infinity<V>();
    for (int64_t i = 0; i < c.count; ++i) {
      const V own(score[i]);
      const int64_t block = i / V::size * V::size;
      int64_t before = block;
      for (int64_t j = 0; j < block; j += V::size)
        before -= __builtin_popcount(lane_bits(V::load(score + j) < own));
      const V same = V::load(score + block);
      const unsigned earlier = (1u << (i - block)) - 1;
      before += __builtin_popcount(lane_bits(own < same) | (~lane_bits(same < own) & earlier));
      for (int64_t j = block + V::size; j < c.count; j += V::size)
        before += __builtin_popcount(lane_bits(own < V::load(score + j)));
      if (before >= k_) continue;
      scores[before] = score[i];
      out.index(before) = int64_t(c.place[i]);
    }
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
      return emit<V>(p_.shape, p_.out, cursor, stream, [&](int64_t) { return zero; });
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
      emit<V>(p_.shape, p_.out, cursor, stream, [&](int64_t j) {
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

template <typename V>
void run(const TopkParams& p) {
  if (p.backward) Topk<V>(p).backward();
  else Topk<V>(p).forward();
}

}  // namespace

void topk(const TopkParams& p) {
  const DType other = p.backward ? p.out.dtype : p.values.dtype;
  if (accumulator(p.x.dtype, other) == DType::f64) run<VecF64>(p);
  else run<VecF32>(p);
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
