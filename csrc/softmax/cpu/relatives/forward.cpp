// The maps forward: a row is brought into scratch once, and written once.
#include "softmax/cpu/relatives/lane_rows.h"
#include "softmax/cpu/relatives/maps.h"
#include "softmax/cpu/relatives/threshold_rows.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

template <typename V>
class MapForward {
 public:
  using S = typename V::Scalar;

  explicit MapForward(const MapParams& p)
      : p_(p), n_(p.shape.n), stream_(streams(p.shape, p.out)) {}

  void run() const {
    if (n_ <= kLaneRow && n_ > 1 && plain_entmax_forward(p_)) {
      if (p_.alpha == 2) return lane_rows<Power::linear>();
      if (p_.alpha == 1.5) return lane_rows<Power::square>();
      if (p_.alpha > 1 && p_.alpha < 2) return lane_rows<Power::general>();
    }
    if (can_threshold_rows(p_)) return threshold_rows();
    for_rows<V>(p_.shape, 3, stream_, [this](const RowCursor& cursor, S* scratch, int64_t pitch) {
      row(cursor, scratch, scratch + pitch, scratch + 2 * pitch);
    });
  }

 private:
  void threshold_rows() const {
    with_float(p_.x.dtype, [&](auto t) {
      using T = decltype(t);
      if constexpr ((sizeof(T) == 8) == (sizeof(S) == 8)) {
        with_power(p_.alpha, [&]<Power kPower>() {
          if constexpr (kPower != Power::exponential)
            ThresholdRows<V, kPower, T>(p_, stream_).run();
        });
      }
    });
  }

  template <Power kPower>
  void lane_rows() const {
    using Lanes = LaneRows<V, kPower>;
    const int64_t rows = p_.shape.rows, room = Lanes::room(n_), pitch = padded<V>(n_);
    const int most = Lanes::groups(n_);
    const int64_t at_once = most * V::size;
    parallel_for(
        0, (rows + at_once - 1) / at_once, rows_per_task(n_ * at_once),
        [&](int64_t begin, int64_t end) {
          S* scratch = static_cast<S*>(thread_scratch(size_t(most * room + 3 * pitch) * sizeof(S)));
          Lanes lanes[kLaneGroups];
          for (int g = 0; g < most; ++g) lanes[g] = Lanes(scratch + g * room, n_, p_.alpha);
          S* spare = scratch + most * room;
          RowCursor cursor(p_.shape, begin * at_once);
          for (int64_t first = begin * at_once; first < rows && first < end * at_once;
               first += at_once)
            lane_groups(cursor, rows - first < at_once ? rows - first : at_once, lanes, spare);
          if (stream_) store_fence();
        });
  }

  // `count` rows from the cursor on, which it moves.
  template <typename Lanes>
  void lane_groups(RowCursor& cursor, int64_t count, Lanes* lanes, S* spare) const {
    int64_t from[kLaneGroups * V::size], to[kLaneGroups * V::size];
    RowCursor again = cursor;
    const int groups = int((count + V::size - 1) / V::size);
    for (int64_t r = 0; r < groups * V::size; ++r) {  // what a last group lacks: from another row
      from[r] = r < count ? cursor.offset(p_.x.row_stride) : from[0];
      to[r] = r < count ? cursor.offset(p_.out.row_stride) : 0;
      if (r < count) cursor.next();
    }
    unsigned solved[kLaneGroups];
    with_float(p_.x.dtype, [&](auto t) {
      using T = decltype(t);
      for (int g = 0; g < groups; ++g) {
        const T* x[V::size];
        for (int r = 0; r < V::size; ++r)
          x[r] = static_cast<const T*>(p_.x.data) + from[g * V::size + r];
        solved[g] = lane_bits(lanes[g].read(x, S(p_.scale)));
      }
    });
    Lanes::solve(lanes, groups);
    with_float(p_.out.dtype, [&](auto t) {
      using T = decltype(t);
      for (int g = 0; g < groups; ++g) {
        const int64_t left = count - g * V::size;
        T* out[V::size];
        uintptr_t addresses = 0;
        for (int r = 0; r < V::size && r < left; ++r) {
          out[r] = static_cast<T*>(p_.out.data) + to[g * V::size + r];
          addresses |= reinterpret_cast<uintptr_t>(out[r]);
        }
        lanes[g].write(out, int(left < V::size ? left : V::size),
                       stream_ && sizeof(T) * V::size == 64 && addresses % 64 == 0);
      }
    });
    const int64_t pitch = padded<V>(n_);
    for (int64_t r = 0; r < count; ++r, again.next())
      if (!(solved[r / V::size] >> (r % V::size) & 1))
        row(again, spare, spare + pitch, spare + 2 * pitch);
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
        emit<V>(p_.shape, p_.out, cursor, stream_, [=](int64_t j) {
          const V d = V::load(s + j) - m;
          return fma(terms(d), lambda, exp_below(d) * dense);
        });
      } else {
        // The terms of a threshold add up to 1 but for its rounding: one more rounding, not two.
        const V rest(S(1 / at.total - 1));
        emit<V>(p_.shape, p_.out, cursor, stream_, [=](int64_t j) {
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
    emit<V>(p_.shape, p_.out, cursor, stream_, [=](int64_t j) {
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
              [=](int64_t j) { return V::load(spare + j) * factor; });
    } else {
      const V log_total(S(__builtin_log(total) - __builtin_log(double(small))));
      emit<V>(p_.shape, p_.out, cursor, stream_,
              [=](int64_t j) { return log_stable(V::load(s + j)) - log_total; });
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
