// The maps forward: a row is brought into scratch once, and written once.
#include "softmax/cpu/relatives/lane_rows.h"
#include "softmax/cpu/relatives/maps.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

template <typename V>
class MapForward {
 public:
  using S = typename V::Scalar;

  explicit MapForward(const MapParams& p)
      : p_(p), n_(p.shape.n), stream_(streams(p.shape, p.out)) {}

  void run() const {
    if (p_.map == Map::entmax && n_ <= kLaneRow && n_ > 1 && plain()) {
      if (p_.alpha == 2) return lane_rows<Power::linear>();
      if (p_.alpha == 1.5) return lane_rows<Power::square>();
    }
    for_rows<V>(p_.shape, 3, stream_, [this](const RowCursor& cursor, S* scratch, int64_t pitch) {
      row(cursor, scratch, scratch + pitch, scratch + 2 * pitch);
    });
  }

 private:
  // No operand but x, and rows in one piece.
  bool plain() const {
    return !p_.target && !p_.row_alpha && !p_.mask && !p_.lengths && !p_.row_scale && !p_.causal &&
           contiguous(p_.shape, p_.x) && contiguous(p_.shape, p_.out);
  }

  template <Power kPower>
  void lane_rows() const {
    const int64_t rows = p_.shape.rows, groups = (rows + V::size - 1) / V::size;
    const int64_t room = LaneRows<V, kPower>::room(n_), pitch = padded<V>(n_);
    parallel_for(0, groups, rows_per_task(n_ * V::size), [&](int64_t begin, int64_t end) {
      S* scratch = static_cast<S*>(thread_scratch(size_t(room + 3 * pitch) * sizeof(S)));
      RowCursor cursor(p_.shape, begin * V::size);
      for (int64_t g = begin; g < end; ++g) {
        const int64_t left = rows - g * V::size;
        RowCursor again = cursor;
        const unsigned solved = lane_group<kPower>(cursor, int(left < V::size ? left : V::size),
                                                   LaneRows<V, kPower>(scratch, n_));
        S* spare = scratch + room;
        for (int r = 0; r < V::size && r < left; ++r, again.next())
          if (!(solved >> r & 1)) row(again, spare, spare + pitch, spare + 2 * pitch);
      }
      if (stream_) store_fence();
    });
  }

  // Of `count` rows from the cursor on, which it moves; returns which are done, bit by bit.
  template <Power kPower>
  unsigned lane_group(RowCursor& cursor, int count, LaneRows<V, kPower> lanes) const {
    int64_t from[V::size], to[V::size];
    for (int r = 0; r < V::size; ++r) {  // those that a last group lacks: from another row
      from[r] = r < count ? cursor.offset(p_.x.row_stride) : from[0];
      if (r >= count) continue;
      to[r] = cursor.offset(p_.out.row_stride);
      cursor.next();
    }
    unsigned solved = 0;
    with_float(p_.x.dtype, [&](auto t) {
      using T = decltype(t);
      const T* x[V::size];
      for (int r = 0; r < V::size; ++r) x[r] = static_cast<const T*>(p_.x.data) + from[r];
      solved = lane_bits(lanes.read(x, S(p_.scale)));
    });
    lanes.solve();
    with_float(p_.out.dtype, [&](auto t) {
      using T = decltype(t);
      T* out[V::size];
      uintptr_t addresses = 0;
      for (int r = 0; r < count; ++r) {
        out[r] = static_cast<T*>(p_.out.data) + to[r];
        addresses |= reinterpret_cast<uintptr_t>(out[r]);
      }
      lanes.write(out, count, stream_ && sizeof(T) * V::size == 64 && addresses % 64 == 0);
    });
    return solved;
  }

  void row(const RowCursor& cursor, S* s, S* spare, S* top_values) const {
    Tops<V> tops{top_values, group(n_)};
    const Row<V> r = load_row<V>(p_, p_.x, cursor, scale_of<V>(p_, cursor), s, &tops);
    if (r.broken()) return constant(cursor, nan_of<V>());
    if (r.empty()) {
      const V nothing(p_.map == Map::log_stablemax ? -infinity<V>() : S(0));
      return constant(cursor, p_.zero_masked_rows ? nothing : nan_of<V>());
    }
    switch (p_.map) {
      case Map::entmax:
      case Map::pladis: return sparse(cursor, s, spare, tops, r.max);
      case Map::softpick: return softpick(cursor, s, r.max);
      case Map::stablemax:
      case Map::log_stablemax: return stablemax(cursor, s, spare, r.max);
    }
  }

  // About 32 vectors of tops.
  static int64_t group(int64_t n) {
    const int64_t vectors = n / (32 * V::size);
    return vectors < 4 ? 4 : vectors;
  }

  void constant(const RowCursor& cursor, V value) const {
    if (p_.target) return loss(cursor, hmax(value));
    emit<V>(p_.shape, p_.out, cursor, stream_, [=](int64_t) { return value; });
  }

  void loss(const RowCursor& cursor, S value) const {
    const bool ignored = cursor.at<int64_t>(p_.target) == p_.ignore_index;
    cursor.at<S>(p_.per_row) = ignored ? S(0) : value;
  }

  void sparse(const RowCursor& cursor, const S* s, S* spare, const Tops<V>& tops, S max) const {
    const double alpha = alpha_of<V>(p_, cursor);
    if (!valid_alpha(alpha)) return constant(cursor, nan_of<V>());
    with_power(alpha, [&]<Power kPower>() {
      const auto at = find_threshold<V, kPower>(s, n_, max, tops, spare, alpha);
      const Terms<V, kPower> terms(alpha - 1, at.tau);
      const V m(max), norm(S(1 / at.total));
      if (p_.target) {
        return entmax_loss<kPower>(cursor, s, terms, at, max, alpha);
      } else if (p_.map == Map::pladis) {
        const double total =
            sum_over<V>(n_, [&](int64_t j) { return exp_below(V::load(s + j) - m); });
        const V dense(S((1 - p_.lambda) / total)), lambda = norm * V(S(p_.lambda));
        emit<V>(p_.shape, p_.out, cursor, stream_, [&](int64_t j) {
          const V d = V::load(s + j) - m;
          return fma(terms(d), lambda, exp_below(d) * dense);
        });
      } else {
        // The terms of a threshold add up to 1 but for its rounding: one more rounding, not two.
        const V rest(S(1 / at.total - 1));
        emit<V>(p_.shape, p_.out, cursor, stream_, [&](int64_t j) {
          const V y = terms(V::load(s + j) - m);
          return kPower == Power::exponential ? y * norm : fma(y, rest, y);
        });
      }
    });
  }

  // With p = exp_e(d - theta), tau = e theta - 1: the loss is (1 - 1/alpha) <p, d - theta> + theta
  // - d_t, in which nothing cancels.
  template <Power kPower>
  void entmax_loss(const RowCursor& cursor, const S* s, const Terms<V, kPower>& terms,
                   const Threshold<V>& at, S max, double alpha) const {
    const int64_t target = cursor.at<int64_t>(p_.target);
    if (target < 0 || target >= n_) return loss(cursor, S(__builtin_nanf("")));
    const double e = alpha - 1;
    const double theta = kPower == Power::exponential ? __builtin_log(at.total) : (at.tau + 1) / e;
    const V m(max), from{S(theta)}, zero(S(0)), norm(S(1 / at.total));
    const double mean = kPower == Power::exponential ? 0 : sum_over<V>(n_, [&](int64_t j) {
      const V d = V::load(s + j) - m, y = terms(d) * norm;
      return select(zero < y, y * (d - from), zero);
    });
    loss(cursor, S((1 - 1 / alpha) * mean + theta - (double(s[target]) - double(max))));
  }

  void softpick(const RowCursor& cursor, const S* s, S max) const {
    const Softpick<V> u(max);
    const V low(-infinity<V>()), zero(S(0));
    const double total = sum_over<V>(n_, [&](int64_t j) {
      const V v = V::load(s + j);
      return select(v == low, zero, magnitude(u(v)));
    });
    const V factor(S(1 / (total + p_.epsilon)));
    emit<V>(p_.shape, p_.out, cursor, stream_, [&](int64_t j) {
      const V v = V::load(s + j);
      return select(zero < v, u(v) * factor, zero);
    });
  }

  void stablemax(const RowCursor& cursor, const S* s, S* spare, S max) const {
    const S small = stable_scale(max);
    const V down(small);
    const double total = sum_over<V>(n_, [&](int64_t j) {
      const V t = stable(V::load(s + j)) * down;
      t.store(spare + j);
      return t;
    });
    if (p_.map == Map::stablemax) {
      const V factor(S(1 / total));
      emit<V>(p_.shape, p_.out, cursor, stream_,
              [&](int64_t j) { return V::load(spare + j) * factor; });
    } else {
      const V log_total(S(__builtin_log(total) - __builtin_log(double(small))));
      emit<V>(p_.shape, p_.out, cursor, stream_,
              [&](int64_t j) { return log_stable(V::load(s + j)) - log_total; });
    }
  }

  const MapParams& p_;
  int64_t n_;
  bool stream_;
};

}  // namespace

void map_forward(const MapParams& p) {
  const DType out = p.out ? p.out.dtype : p.x.dtype;
  if (accumulator(p.x.dtype, out) == DType::f64) MapForward<VecF64>(p).run();
  else MapForward<VecF32>(p).run();
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
