// The maps backward. entmax works from its output, the others find their row's statistics again:
// reading x once more costs less than keeping what the forward found.
#include "softmax/cpu/relatives/gradient_rows.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

template <typename V>
class MapBackward {
 public:
  using S = typename V::Scalar;

  explicit MapBackward(const MapParams& p)
      : p_(p), n_(p.shape.n), stream_(streams(p.shape, p.out)) {}

  void run() const {
    if (can_gradient_rows(p_)) return gradient_rows();
    for_rows<V>(p_.shape, 4, stream_, [this](const RowCursor& cursor, S* scratch, int64_t pitch) {
      S* arrays[4];
      for (int i = 0; i < 4; ++i) arrays[i] = scratch + i * pitch;
      if (p_.map == Map::entmax && !p_.target) return from_output(cursor, arrays[0], arrays[1]);
      from_input(cursor, arrays);
    });
  }

 private:
  V zero() const { return V(S(0)); }

  void gradient_rows() const {
    with_float(p_.x.dtype, [&](auto t) {
      using T = decltype(t);
      if constexpr ((sizeof(T) == 8) == (sizeof(S) == 8)) {
        with_power(p_.alpha, [&]<Power kPower>() {
          if constexpr (kPower != Power::exponential) GradientRows<V, kPower, T>(p_, stream_).run();
        });
      }
    });
  }

  void from_output(const RowCursor& cursor, S* y, S* dy) const {
    const double alpha = alpha_of<V>(p_, cursor);
    load_row<V>(p_, p_.x, cursor, S(1), y);
    load_all<V>(p_.shape, p_.dy, cursor, dy);
    if (!p_.out) return alpha_gradient(cursor, y, dy, alpha);
    with_power(alpha, [&]<Power kPower>() {
      const V exponent(S(2 - alpha));
      SlopeSums<V> sums;
      for (int64_t j = 0; j < n_; j += V::size) {
        // -inf, where an element took no part, becomes 0; NaN stays.
        const V g = slope_of<kPower>(max(zero(), V::load(y + j)), exponent);
        g.store(y + j);
        sums.add(g, V::load(dy + j));
      }
      const V mean(sums.mean()), scale(scale_of<V>(p_, cursor));
      emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t j) {
        const V g = V::load(y + j);
        return select(g == zero(), zero(), g * (V::load(dy + j) - mean) * scale);
      });
    });
  }

  // With L = log y, q = (y^-e - 1 + e L) / e^2, H = sum y L, Q = sum y q:
  //   dalpha = sum dy y (Q (1 - e L) - q (1 - e H)) / (1 - e H + e^2 Q)
  // which is the derivative of entmax with its two divisions by e carried out: at e = 0, where
  // q = L^2 / 2, it is the limit.
  void alpha_gradient(const RowCursor& cursor, const S* y, const S* dy, double alpha) const {
    const double e = alpha - 1;
    double h = 0, q_sum = 0, dy_sum = 0, dy_log = 0, dy_q = 0;
    constexpr int64_t block = 64 * V::size;
    for (int64_t begin = 0; begin < n_; begin += block) {
      const int64_t end = begin + block < n_ ? begin + block : n_;
      V sums[5] = {zero(), zero(), zero(), zero(), zero()};
      for (int64_t j = begin; j < end; j += V::size) {
        const V p = max(zero(), V::load(y + j));
        const auto off = p == zero();
        const V l = select(off, zero(), log(p));
        const V q = l * l * second_difference(V(S(-e)) * l);
        const V g = select(off, zero(), p * V::load(dy + j));
        sums[0] = fma(p, l, sums[0]);
        sums[1] = fma(p, q, sums[1]);
        sums[2] = sums[2] + g;
        sums[3] = fma(g, l, sums[3]);
        sums[4] = fma(g, q, sums[4]);
      }
      h += double(hsum(sums[0]));
      q_sum += double(hsum(sums[1]));
      dy_sum += double(hsum(sums[2]));
      dy_log += double(hsum(sums[3]));
      dy_q += double(hsum(sums[4]));
    }
    const double gradient =
        (q_sum * (dy_sum - e * dy_log) - dy_q * (1 - e * h)) / (1 - e * h + e * e * q_sum);
    cursor.at<S>(p_.per_row) = S(valid_alpha(alpha) ? gradient : double(__builtin_nanf("")));
  }

  // (exp(t) - 1 - t) / t^2.
  static V second_difference(V t) {
    constexpr int terms = sizeof(S) == 8 ? 13 : 7;
    V series(S(0));
    double factorial[terms + 2];
    factorial[0] = factorial[1] = 1;
    for (int i = 2; i < terms + 2; ++i) factorial[i] = factorial[i - 1] * i;
    for (int i = terms + 1; i >= 2; --i) series = fma(series, t, V(S(1 / factorial[i])));
    const auto near = magnitude(t) < V(S(0.5));
    const V away = (exp(t) - V(S(1)) - t) / (t * t);
    return select(near, series, away);
  }

  void from_input(const RowCursor& cursor, S* const* arrays) const {
    S *s = arrays[0], *dy = arrays[1];
    Tops<V> tops{arrays[2], 4};
    const Row<V> r = load_row<V>(p_, p_.x, cursor, scale_of<V>(p_, cursor), s, &tops);
    const bool ignored = p_.target && cursor.at<int64_t>(p_.target) == p_.ignore_index;
    if (r.empty() || ignored) return none(cursor);
    if (r.broken()) return nan(cursor, s);
    if (p_.target) return loss(cursor, s, arrays[3], tops, r.max);
    load_all<V>(p_.shape, p_.dy, cursor, dy);
    switch (p_.map) {
      case Map::entmax: break;
      case Map::pladis: return pladis(cursor, s, dy, arrays[3], tops, r.max);
      case Map::softpick: return softpick(cursor, s, dy, r.max);
      case Map::stablemax: return stablemax(cursor, s, dy, r.max);
      case Map::log_stablemax: return log_stablemax(cursor, s, dy, r.max);
    }
  }

  void none(const RowCursor& cursor) const {
    emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t) { return zero(); });
  }

  // A row that is NaN has no gradient, but what takes no part has none of it: 0.
  void nan(const RowCursor& cursor, const S* s) const {
    const V low(-infinity<V>());
    emit<V>(p_.shape, p_.out, cursor, stream_,
            [=, this](int64_t j) { return select(V::load(s + j) == low, zero(), nan_of<V>()); });
  }

  void loss(const RowCursor& cursor, const S* s, S* spare, const Tops<V>& tops, S max) const {
    const double alpha = alpha_of<V>(p_, cursor);
    const int64_t target = cursor.at<int64_t>(p_.target);
    if (!valid_alpha(alpha) || target < 0 || target >= n_) return nan(cursor, s);
    with_power(alpha, [&]<Power kPower>() {
      const auto at = find_threshold<V, kPower>(s, n_, max, tops, spare, alpha);
      const Terms<V, kPower> terms(alpha - 1, at.tau);
      const S grad = cursor.at<S>(p_.per_row) * scale_of<V>(p_, cursor);
      const V m(max), norm(S(1 / at.total)), factor(grad);
      emit<V>(p_.shape, p_.out, cursor, stream_,
              [=, this](int64_t j) { return terms(V::load(s + j) - m) * norm * factor; });
      if (s[target] == -infinity<V>()) return;
      const S chosen = hmax(terms(V(s[target]) - m) * norm);
      store_element<V>(p_.shape, p_.out, cursor, target, (chosen - 1) * grad);
    });
  }

  void pladis(const RowCursor& cursor, const S* s, const S* dy, S* spare, const Tops<V>& tops,
              S max) const {
    const double alpha = p_.alpha;
    with_power(alpha, [&]<Power kPower>() {
      const auto at = find_threshold<V, kPower>(s, n_, max, tops, spare, alpha);
      const Terms<V, kPower> terms(alpha - 1, at.tau);
      // The slopes are those of the unnormalised terms, which but for alpha = 1 add up to 1.
      const double norm = kPower == Power::exponential ? 1 / at.total : 1;
      const V m(max);
      double total = 0, dense = 0, slopes = 0, sparse = 0;
      constexpr int64_t block = 64 * V::size;
      for (int64_t begin = 0; begin < n_; begin += block) {
        const int64_t end = begin + block < n_ ? begin + block : n_;
        V sums[4] = {zero(), zero(), zero(), zero()};
        for (int64_t j = begin; j < end; j += V::size) {
          const V d = V::load(s + j) - m, e = exp_below(d);
          const V grad = select(d == V(-infinity<V>()), zero(), V::load(dy + j));
          V g;
          terms(d, &g);
          sums[0] = sums[0] + e;
          sums[1] = fma(e, grad, sums[1]);
          sums[2] = sums[2] + g;
          sums[3] = fma(g, grad, sums[3]);
        }
        total += double(hsum(sums[0]));
        dense += double(hsum(sums[1]));
        slopes += double(hsum(sums[2]));
        sparse += double(hsum(sums[3]));
      }
      const double scale = double(scale_of<V>(p_, cursor));
      const V dense_mean(S(dense / total)), sparse_mean(S(sparse / slopes));
      const V dense_factor(S((1 - p_.lambda) / total * scale)), factor(S(p_.lambda * norm * scale));
      emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t j) {
        const V d = V::load(s + j) - m, grad = V::load(dy + j);
        V g;
        terms(d, &g);
        const V ds =
            fma(g * factor, grad - sparse_mean, exp_below(d) * dense_factor * (grad - dense_mean));
        return select(d == V(-infinity<V>()), zero(), ds);
      });
    });
  }

  void softpick(const RowCursor& cursor, const S* s, const S* dy, S max) const {
    const Softpick<V> u(max);
    const V low(-infinity<V>());
    const double total = sum_over<V>(n_, [&](int64_t j) {
      const V v = V::load(s + j);
      return select(v == low, zero(), magnitude(u(v)));
    });
    const V factor(S(1 / (total + p_.epsilon)));
    const double weighted = sum_over<V>(n_, [&](int64_t j) {
      const V v = V::load(s + j);
      return select(zero() < v, u(v) * factor * V::load(dy + j), zero());
    });
    const V inner{S(weighted)}, scaled = factor * V(scale_of<V>(p_, cursor));
    emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t j) {
      const V v = V::load(s + j);
      const V up = V::load(dy + j) - inner, down = select(v < zero(), inner, zero());
      return u.exponential(v) * scaled * select(zero() < v, up, down);
    });
  }

  void stablemax(const RowCursor& cursor, const S* s, const S* dy, S max) const {
    const V down(stable_scale(max));
    const V low(-infinity<V>()), one(S(1));
    const double total = sum_over<V>(n_, [&](int64_t j) { return stable(V::load(s + j)) * down; });
    const V factor(S(1 / total));
    const double weighted = sum_over<V>(n_, [&](int64_t j) {
      const V v = V::load(s + j);
      return select(v == low, zero(), stable(v) * down * factor * V::load(dy + j));
    });
    const V inner{S(weighted)}, scaled = factor * V(scale_of<V>(p_, cursor));
    emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t j) {
      const V v = V::load(s + j);
      const V ds = stable(v) * down * scaled * (V::load(dy + j) - inner) / (one + magnitude(v));
      return select(v == low, zero(), ds);
    });
  }

  void log_stablemax(const RowCursor& cursor, const S* s, const S* dy, S max) const {
    const V down(stable_scale(max));
    const V low(-infinity<V>()), one(S(1));
    const double total = sum_over<V>(n_, [&](int64_t j) { return stable(V::load(s + j)) * down; });
    const double all = sum_over<V>(
        n_, [&](int64_t j) { return select(V::load(s + j) == low, zero(), V::load(dy + j)); });
    const V share(S(all / total)), scale(scale_of<V>(p_, cursor));
    emit<V>(p_.shape, p_.out, cursor, stream_, [=, this](int64_t j) {
      const V v = V::load(s + j);
      const V ds = fnma(stable(v) * down, share, V::load(dy + j)) * scale / (one + magnitude(v));
      return select(v == low, zero(), ds);
    });
  }

  const MapParams& p_;
  int64_t n_;
  bool stream_;
};

}  // namespace

void map_backward(const MapParams& p) {
  const DType out = p.out ? p.out.dtype : p.x.dtype;
  if (accumulator(p.x.dtype, out) == DType::f64) MapBackward<VecF64>(p).run();
  else MapBackward<VecF32>(p).run();
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
