// Short rows of entmax for alpha in (1, 2], a row a lane.
//
// A short row by itself is all latency: every step towards its threshold ends in a sum over lanes,
// and decides on it. Here only what may be in the support, d > -1 / (alpha - 1), is kept of each
// row, and a transpose in registers gives every row a lane: a step costs a few instructions per
// vector of candidates. The way back puts each row's results where its candidates were. A row's
// lane keeps its threshold once it has converged, so that its neighbours do not show in its result.
#pragma once

#include "cpu/transpose.h"
#include "softmax/cpu/relatives/root.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int64_t kLaneRow = 256;  // longest row; a group of fp32 ones is half of L1
inline constexpr int kLaneGroups = 4;     // at most so many groups at a time

template <typename V, Power kPower>
class LaneRows {
 public:
  using S = typename V::Scalar;

  static_assert(kPower != Power::exponential);
  static constexpr int kStep = V::size < 4 ? V::size : 4;  // candidates at a time

  LaneRows() = default;
  // `scratch` is for room(n) elements.
  LaneRows(S* scratch, int64_t n, double alpha)
      : n_(n),
        blocks_((n + V::size - 1) / V::size),
        pitch_(pitch(n)),
        near_(scratch),
        d_(near_ + V::size * pitch_),
        where_(reinterpret_cast<uint16_t*>(d_ + V::size * pitch_)),
        e_(alpha - 1),
        exponent_(S(e_)),
        right_(S(-__builtin_pow(double(n), -e_))) {}
  static int64_t room(int64_t n) { return 3 * V::size * pitch(n); }
  // Groups at a time, so that they stay in L1.
  static int groups(int64_t n) {
    const int64_t fit = kLaneRow / n;
    return int(fit < 1 ? 1 : fit < kLaneGroups ? fit : kLaneGroups);
  }

  // Rows of n elements, times scale > 0. Returns which lanes a threshold exists for.
  template <typename T>
  auto read(const T* const* x, S scale) {
    const V low(-infinity<V>()), high(infinity<V>()), factor(scale);
    const int tail = int(n_ % V::size);
    V most[V::size];
    for (int r = 0; r < V::size; ++r) {
      V top = low, bad = low;
      int64_t j = 0;
      for (; j + V::size <= n_; j += V::size) {
        const V v = V::load(x[r] + j);
        top = max(v, top);
        bad = select(is_nan(v), v, bad);
      }
      if (tail) {
        const V v = V::load(x[r] + j, tail);
        top = max(select(V::first(tail), v, low), top);
        bad = select(is_nan(v), v, bad);
      }
      most[r] = select(is_nan(bad), high, top);
    }
    fastops::cpu::transpose(most);
    V all = most[0];
    for (int r = 1; r < V::size; ++r) all = max(most[r], all);
    alignas(64) S greatest[V::size];
    all.store(greatest);
    compact(x, factor, greatest);
    const V top = all * factor;
    return both(low < top, top < high);
  }

  // The thresholds of `count` groups, in turns: the steps of one wait for the sums of the other.
  static void solve(LaneRows* groups, int count) {
    bool more = count > 0;
    for (int g = 0; g < count; ++g) groups[g].begin();
    for (int i = 0; more && i < 100; ++i) {
      more = false;
      for (int g = 0; g < count; ++g)
        if (any(groups[g].moving_)) more |= groups[g].step(i);
    }
  }

  // `stream` where a row's vectors are whole lines.
  template <typename T>
  void write(T* const* out, int count, bool stream) {
    results();
    for (int64_t j = 0; j < count_; j += V::size) {
      V rows[V::size];
      for (int i = 0; i < V::size; ++i) rows[i] = V::load(at(j + i));
      fastops::cpu::transpose(rows);
      for (int r = 0; r < V::size; ++r) rows[r].store(near_ + r * pitch_ + j);
    }
    const int tail = int(n_ % V::size);
    for (int r = 0; r < count; ++r) {
      const S* from = near_ + r * pitch_;
      const uint16_t* where = where_ + r * blocks_;
      T* to = out[r];
      const auto next = [&] {
        const unsigned lanes = *where++;
        const V y = expand(V::load(from), lanes);
        from += __builtin_popcount(lanes);
        return y;
      };
      int64_t j = 0;
      if (stream)
        for (; j + V::size <= n_; j += V::size) next().stream(to + j);
      for (; j + V::size <= n_; j += V::size) next().store(to + j);
      if (tail) next().store(to + j, tail);
    }
  }

 private:
  // Compressing and expanding reach a vector beyond the last candidate; an odd number of vectors
  // keeps rows apart in the cache.
  static int64_t pitch(int64_t n) { return (((n + V::size - 1) / V::size + 1) | 1) * V::size; }
  S* at(int64_t c) const { return d_ + c * V::size; }

  // Candidates of every row, as differences to its greatest element, then turned to lanes.
  template <typename T>
  void compact(const T* const* x, V factor, const S* greatest) {
    const V low(-infinity<V>()), least(S(-1 / e_ * (1 + 1e-6)));
    const int tail = int(n_ % V::size);
    int64_t counts[V::size];
    count_ = 0;
    for (int r = 0; r < V::size; ++r) {
      const V m(greatest[r]);
      S* to = near_ + r * pitch_;
      uint16_t* where = where_ + r * blocks_;
      const auto take = [&](V d) {
        const unsigned in = lane_bits(least < d);
        *where++ = uint16_t(in);
        to += compress(d, in, to);
      };
      int64_t j = 0;
      for (; j + V::size <= n_; j += V::size) {
        prefetch(x[r] + j + V::size * n_);  // the next group's, mostly
        take((V::load(x[r] + j) - m) * factor);
      }
      if (tail) take(select(V::first(tail), (V::load(x[r] + j, tail) - m) * factor, low));
      low.store(to);
      counts[r] = to - (near_ + r * pitch_);
      count_ = counts[r] > count_ ? counts[r] : count_;
    }
    const int64_t whole = (count_ + V::size - 1) / V::size * V::size;
    for (int r = 0; r < V::size; ++r)
      for (int64_t j = counts[r] + V::size; j < whole; j += V::size)
        low.store(near_ + r * pitch_ + j);
    for (int64_t j = 0; j < whole; j += V::size) {
      V rows[V::size];
      for (int r = 0; r < V::size; ++r) rows[r] = V::load(near_ + r * pitch_ + j);
      fastops::cpu::transpose(rows);
      for (int i = 0; i < V::size; ++i) rows[i].store(at(j + i));
    }
  }

  // A sum over blocks of terms, with what rounding loses from block to block.
  struct Sum {
    V total{S(0)}, lost{S(0)};

    void add(V term) {
      term = term - lost;
      const V sum = total + term;
      lost = (sum - total) - term;
      total = sum;
    }
  };

  void begin() {
    moving_ = V(S(0)) < V(S(1));
    if constexpr (kPower == Power::general) seed();
    else tau_ = V(S(-1));
  }

  // Returns whether there is more to do.
  bool step(int i) {
    if constexpr (kPower == Power::general) return halley(i);
    else return newton();
  }

  // ---- alpha of 2 and 1.5 ----

  // From tau = -1 (root.h) until a further step would not show: Newton's converge quadratically
  // (square), or are exact on the right support (linear). The last is still taken.
  bool newton() {
    constexpr bool wide = sizeof(S) == 8;
    const V enough(S(kPower == Power::square ? (wide ? 1e-10 : 1e-5) : (wide ? 2e-16 : 1.2e-7)));
    V f, g;
    sums(f, g);
    const V step = (f - (kPower == Power::linear ? V(S(1)) : sqrt(f))) / g;
    tau_ = select(moving_, tau_ + step, tau_);
    moving_ = both(moving_, enough < step);
    return any(moving_);
  }

  V weight(int64_t c) const {
    const V d = V::load(at(c)), zero(S(0));
    if constexpr (kPower == Power::linear) return max(d - tau_, zero);
    else return max(fma(d, V(S(0.5)), zero - tau_), zero);
  }

  // Sums of y and of y^(2 - alpha).
  void sums(V& f, V& g) const {
    const V zero(S(0)), one(S(1));
    Sum total;
    V slopes[2] = {zero, zero};
    for (int64_t c = 0; c < count_; c += kStep) {
      V y[2] = {zero, zero};
      for (int i = 0; i < kStep; ++i) {
        const V w = weight(c + i);
        if constexpr (kPower == Power::linear) {
          y[i % 2] = y[i % 2] + w;
          slopes[i % 2] = slopes[i % 2] + select(zero < w, one, zero);
        } else {
          y[i % 2] = fma(w, w, y[i % 2]);
          slopes[i % 2] = slopes[i % 2] + w;
        }
      }
      total.add(y[0] + y[1]);
    }
    f = total.total;
    g = slopes[0] + slopes[1];
  }

  // ---- any other alpha ----

  // y = w^(1/e) of d, w = e d - tau. Where e is small w is near 1, and the bits that count are
  // those of t = w - 1. Candidates out of the support have w = tiny and y = 0.
  V term(int64_t c, V& w) const {
    const V d = V::load(at(c)), zero(S(0)), tiny(S(sizeof(S) == 8 ? 0x1p-1022 : 0x1p-126));
    w = max(fma(exponent_, d, zero - at_.tau), tiny);
    const V log_w = e_ < 0.25 ? log1p(fma(exponent_, d, zero - at_.shift), w) : log(w);
    if constexpr (sizeof(S) == 4) return exp2(log_w * V(S(kLog2e / e_)));
    else return exp(log_w * V(S(1 / e_)));
  }

  // Where the candidates that reach a share of the way to the maximum would put the threshold if
  // they were all equal to their mean: left of it (Jensen).
  void seed() {
    const V zero(S(0)), one(S(1)), e = exponent_;
    V left(S(-1));
    constexpr double shares[] = {0.25, 0.5};
    for (const double share : shares) {
      const V least(S(-share / e_));
      V number = zero, sum = zero;
      for (int64_t c = 0; c < count_; ++c) {
        const V d = V::load(at(c));
        const auto in = least < d;
        number = number + select(in, one, zero);
        sum = sum + select(in, d, zero);
      }
      left = max(fma(e, sum / number, zero - exp(log(number) * (zero - e))), left);
    }
    at_ = settled(min(left, V(right_)), zero);
  }

  // Halley's steps on F^e - 1, cubic: from the seed mostly two.
  bool halley(int i) {
    const V zero(S(0)), enough(S(sizeof(S) == 8 ? 1e-5 : 4e-3));
    V f, g, h;
    sums(f, g, h);
    // With G = F^e - 1: a = G / F^(e-1), b = -G' / F^(e-1), c = G'' / F^(e-1). At most twice
    // Newton's step, which does not pass the root, and converges by itself too.
    const V a = f * less(f), b = g;
    const V c = V(S(1 / e_ - 1)) * (h - g * g / f), bend = i < 8 ? a * c : zero;
    const V step = (a + a) * b / max(fma(b + b, b, zero - bend), b * b);
    const V moved = min(max(step, V(S(-1)) - at_.tau), V(right_) - at_.tau);
    const V scale = min(zero - at_.tau, exponent_);
    const Tau now = settled(at_.high, at_.low + moved);
    at_ = {select(moving_, now.high, at_.high), select(moving_, now.low, at_.low),
           select(moving_, now.tau, at_.tau), select(moving_, now.shift, at_.shift)};
    moving_ = both(moving_, enough * scale < magnitude(moved));
    return any(moving_);
  }

  // 1 - f^-e, exactly so only near f = 1: with x = e log f, 2 tanh(x / 2) / (1 + tanh(x / 2)), and
  // a term each of the series of log and of tanh's fraction. What is left out is beyond the order
  // of the steps.
  V less(V f) const {
    const V one(S(1)), third(S(1. / 3)), u = (f - one) / (f + one);
    const V half = exponent_ * fma(u * u * third, u, u);
    return (half + half) / fma(half, fma(half, third, one), one);
  }

  // tau = high + low, where high is in steps of 2^-11 (2^-24), so that tau + 1 can be rounded once.
  struct Tau {
    V high, low, tau, shift;  // shift = tau + 1
  };
  static Tau settled(V high, V low) {
    const V coarse(S(sizeof(S) == 8 ? 0x1.8p28 : 0x1.8p12));
    const V near = ((high + low) + coarse) - coarse, rest = (high - near) + low;
    return {near, rest, near + rest, (near + V(S(1))) + rest};
  }

  // Sums of y, y / w and y / w^2.
  void sums(V& f, V& g, V& h) const {
    Sum total;
    g = h = V(S(0));
    for (int64_t c = 0; c < count_; c += kStep) {
      V y[kStep];
      for (int i = 0; i < kStep; ++i) {
        V w;
        y[i] = term(c + i, w);
        const V r = reciprocal(w), slope = y[i] * r;
        g = g + slope;
        h = fma(slope, r, h);
      }
      total.add(sum_of(y));
    }
    f = total.total;
  }

  static V sum_of(const V* y) {
    if constexpr (kStep == 2) return y[0] + y[1];
    else return (y[0] + y[1]) + (y[2] + y[3]);
  }

  // ---- results ----

  // y in place of the candidates. That of no formula for tau is divided by its sum.
  void results() {
    if constexpr (kPower != Power::general) {
      for (int64_t c = 0; c < count_; ++c) {
        const V w = weight(c);
        (kPower == Power::square ? w * w : w).store(at(c));
      }
    } else {
      Sum total;
      for (int64_t c = 0; c < count_; c += kStep) {
        V y[kStep], w;
        for (int i = 0; i < kStep; ++i) {
          y[i] = term(c + i, w);
          y[i].store(at(c + i));
        }
        total.add(sum_of(y));
      }
      // (1 - total) / total, which is small: one more rounding, not two.
      const V rest = ((V(S(1)) - total.total) + total.lost) / total.total;
      for (int64_t c = 0; c < count_; ++c) {
        const V y = V::load(at(c));
        fma(y, rest, y).store(at(c));
      }
    }
  }

  int64_t n_, blocks_, pitch_, count_ = 0;  // count_: the most candidates of a row
  S* near_;          // [V::size][pitch]: the candidates of each row, then their results
  S* d_;             // [count][V::size]: the same, a row a lane
  uint16_t* where_;  // [V::size][blocks]: which elements are candidates
  double e_;
  V exponent_;
  S right_;                  // tau if all elements are equal
  typename V::Mask moving_;  // rows whose threshold is not settled
  V tau_;                    // of alpha 2 and 1.5
  Tau at_;                   // of any other
};

}  // namespace
}  // namespace fastops::softmax::cpu
