// The threshold of entmax, without sorting.
//
// With e = alpha - 1 and d = s - max, y = [e d - tau]+ ^ (1 / e) (exp(d) for e = 0), and tau in
// [-1, 0) is where F(tau) = sum y is 1. Newton's method runs on (F^e - 1) / e, whose Newton step at
// alpha = 2 is Michelot's. For alpha <= 2 it is convex in tau: from any tau where F >= 1 the
// iterates rise to the root and never pass it, so elements that have left the support never come
// back and are dropped from the candidates. For alpha > 2 a bracket guards the iteration.
#pragma once

#include "softmax/cpu/relatives/rows.h"

namespace fastops::softmax::cpu {
namespace {

enum class Power : int8_t { exponential, linear, square, general };

constexpr Power power_of(double alpha) {
  return alpha == 1.0   ? Power::exponential
         : alpha == 2   ? Power::linear
         : alpha == 1.5 ? Power::square
                        : Power::general;
}

// The terms of one row at a threshold.
template <typename V, Power kPower>
struct Terms {
  using S = typename V::Scalar;
  V e, inverse, tau, shift;  // shift = tau + 1, to more bits than tau + 1 would have

  Terms(double exponent, double t)
      : e(S(exponent)), inverse(S(1 / exponent)), tau(S(t)), shift(S(t + 1)) {}

  // y of d, and (where asked for) -dy/dtau * e = y^(2 - alpha).
  V operator()(V d, V* slope = nullptr) const {
    const V zero(S(0));
    if constexpr (kPower == Power::exponential) {
      const V y = exp_below(d);
      if (slope) *slope = y;
      return y;
    } else if constexpr (kPower == Power::linear) {
      const V w = d - tau;
      const auto in = zero < w;
      if (slope) *slope = select(in, V(S(1)), zero);
      return select(in, w, zero);
    } else if constexpr (kPower == Power::square) {
      const V w = max(fma(d, V(S(0.5)), zero - tau), zero);
      if (slope) *slope = w;
      return w * w;
    } else {
      // w = 1 + t: where it is near 1, that is where e is small, t has the bits that count.
      const V t = fma(e, d, zero - shift), w = fma(e, d, zero - tau);
      const auto in = both(zero < w, V(-infinity<V>()) < d);
      if (!any(in)) {
        if (slope) *slope = zero;
        return zero;
      }
      const V y = select(in, exp(log1p(t, w) * inverse), zero);
      if (slope) *slope = select(in, y / w, zero);
      return y;
    }
  }
};

// Rows this long are first solved for the greatest of groups of their elements.
inline constexpr int64_t kTopsFrom = 2048;

template <typename V>
struct Threshold {
  double tau = -1;   // meaningless for alpha = 1
  double total = 1;  // what the terms at tau sum to: divide by it
};

// The candidates of a row: the d that may be in the support, padded with -inf to whole vectors.
template <typename V>
struct Candidates {
  using S = typename V::Scalar;
  S* d;
  int64_t count = 0;

  void pad() {
    for (int64_t j = 0; j < V::size; ++j) d[count + j] = -infinity<V>();
  }
  // Those of `from` (n of them, minus `max`) that are above `least`. `from` may be d itself.
  void take(const S* from, int64_t n, S max, S least) {
    const V m(max), low(least);
    int64_t kept = 0;
    for (int64_t j = 0; j < n; j += V::size) {
      const V v = V::load(from + j) - m;
      const unsigned in = lane_bits(low < v);
      if (in) kept += compress(v, in, d + kept);
    }
    count = kept;
    pad();
  }
};

template <typename V, Power kPower>
class Root {
 public:
  using S = typename V::Scalar;

  explicit Root(double alpha) : e_(alpha - 1) {}
  double alpha() const { return e_ + 1; }

  // From tau on, where F(tau) >= 1 (or from -1). `n`: elements of the whole row.
  Threshold<V> solve(Candidates<V>& c, double tau, int64_t n) const {
    double low = tau, high = -__builtin_pow(double(n), -e_);
    Threshold<V> at;
    // A step below this moves no y by more than its rounding.
    const double small = sizeof(S) == 8 ? 4e-16 : 6e-8;
    for (int i = 0; i < 100; ++i) {
      double f, g;
      sums(c, tau, f, g);
      at.tau = tau;
      at.total = f;
      if (f >= 1) low = tau;
      else high = tau;
      const double step = newton(f, g);
      double next = tau + step;
      const double enough = small * least_of(__builtin_fabs(tau), __builtin_fabs(e_));
      if (e_ > 1) {
        if (!(next > low && next < high) || i % 3 == 2) next = 0.5 * (low + high);
        if (!(__builtin_fabs(next - tau) > enough) || __builtin_fabs(f - 1) <= small) break;
      } else if (!((e_ > 0 ? step : -step) > enough)) {
        break;
      }
      tau = next;
      if (e_ > 0 && i % 2 == 0 && c.count > 4 * V::size) c.take(c.d, c.count, S(0), least(low));
    }
    finish(c, at);
    return at;
  }

  // d above this may have a y above 0 at tau.
  S least(double tau) const {
    if (e_ <= 0) return -infinity<V>();
    return S(tau / e_ * (1 + 1e-6));
  }

 private:
  static double least_of(double a, double b) { return a < b ? a : b; }

  void sums(const Candidates<V>& c, double tau, double& f, double& g) const {
    const Terms<V, kPower> terms(e_, tau);
    f = g = 0;
    constexpr int64_t block = 64 * V::size;
    for (int64_t begin = 0; begin < c.count; begin += block) {
      const int64_t end = begin + block < c.count ? begin + block : c.count;
      V total(S(0)), slopes(S(0));
      for (int64_t j = begin; j < end; j += V::size) {
        V slope;
        total = total + terms(V::load(c.d + j), &slope);
        slopes = slopes + slope;
      }
      f += double(hsum(total));
      g += double(hsum(slopes));
    }
  }

  // e (F^e - 1) / e * F^(1 - e) / sum y^(2 - alpha)
  double newton(double f, double g) const {
    if constexpr (kPower == Power::linear) return (f - 1) / g;
    else if constexpr (kPower == Power::square) return (f - __builtin_sqrt(f)) / g;
    else {
      const double log_f = __builtin_log(f);
      return __builtin_expm1(e_ * log_f) * __builtin_exp((1 - e_) * log_f) / g;
    }
  }

  // tau from the support alone, which is known by now: no error of the iteration is left. Where
  // there is no formula for it, a better sum to divide by.
  void finish(const Candidates<V>& c, Threshold<V>& at) const {
    if constexpr (kPower == Power::linear || kPower == Power::square) {
      const S edge = S(at.tau / e_);
      double sum = 0;
      int64_t k = 0;
      for (int64_t j = 0; j < c.count; ++j)
        if (c.d[j] > edge) {
          sum += double(c.d[j]);
          ++k;
        }
      if (k == 0) return;
      if constexpr (kPower == Power::linear) {
        at.tau = (sum - 1) / double(k);
      } else {
        const double mean = 0.5 * sum / double(k);
        double spread = 0;
        for (int64_t j = 0; j < c.count; ++j)
          if (c.d[j] > edge) {
            const double off = 0.5 * double(c.d[j]) - mean;
            spread += off * off;
          }
        const double rest = (1 - spread) / double(k);
        at.tau = mean - __builtin_sqrt(rest > 0 ? rest : 0);
      }
      at.total = 1;
    } else if constexpr (sizeof(S) == 4) {
      // What every element is divided by: small terms must not be lost beside great ones.
      const Terms<V, kPower> terms(e_, at.tau);
      alignas(64) S lane[V::size];
      double totals[V::size] = {};
      for (int64_t j = 0; j < c.count; j += V::size) {
        terms(V::load(c.d + j)).store(lane);
        for (int i = 0; i < V::size; ++i) totals[i] += double(lane[i]);
      }
      at.total = 0;
      for (const double total : totals) at.total += total;
    }
  }

  double e_;
};

// A bound on the threshold of a row of n scores with maximum `max`, where F >= 1. `d` is scratch
// for as many candidates as there are `tops`.
template <typename V, Power kPower>
inline double threshold_bound(const Root<V, kPower>& root, int64_t n, typename V::Scalar max,
                              const Tops<V>& tops, typename V::Scalar* d) {
  if (!(root.alpha() > 1) || n < kTopsFrom) return -1;
  // The sum over a part is less than the whole: its root bounds the row's from below.
  Candidates<V> candidates{d};
  candidates.take(tops.values, tops.count, max, root.least(-1));
  double tau = root.solve(candidates, -1, n).tau;
  tau -= (sizeof(*d) == 4 ? 1e-6 : 1e-15) * __builtin_fabs(tau);
  return tau < -1 ? -1 : tau;
}

// The threshold of a row s of n scores with maximum `max`, not broken, not empty. `d` is scratch
// for n candidates; `tops` of the row.
template <typename V, Power kPower>
inline Threshold<V> find_threshold(const typename V::Scalar* s, int64_t n, typename V::Scalar max,
                                   const Tops<V>& tops, typename V::Scalar* d, double alpha) {
  if constexpr (kPower == Power::exponential) {
    const V m(max);
    return {-1, sum_over<V>(n, [&](int64_t j) { return exp_below(V::load(s + j) - m); })};
  } else {
    const Root<V, kPower> root(alpha);
    const double tau = threshold_bound(root, n, max, tops, d);
    Candidates<V> candidates{d};
    candidates.take(s, n, max, root.least(tau));
    return root.solve(candidates, tau, n);
  }
}

}  // namespace
}  // namespace fastops::softmax::cpu
