// Short rows of sparsemax and 1.5-entmax, one row a lane.
//
// A short row by itself is all latency: every Newton step ends in a sum over lanes, and decides on
// it. Here a step costs 4 instructions per vector of elements (load, fma, max, add) whatever the
// number of steps, and reading and writing a transpose in registers each. A row's lane keeps its
// threshold once it has converged, so that its neighbours do not show in its result.
#pragma once

#include "cpu/transpose.h"
#include "softmax/cpu/relatives/root.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int64_t kLaneRow = 256;  // longest row; a tile of fp32 ones is half of L1

template <typename V, Power kPower>
class LaneRows {
 public:
  using S = typename V::Scalar;

  static_assert(kPower == Power::linear || kPower == Power::square);

  // `d` is scratch for room(n) elements.
  LaneRows(S* d, int64_t n) : d_(d), n_(n), blocks_((n + V::size - 1) / V::size) {}
  static int64_t room(int64_t n) { return padded<V>(n) * V::size; }

  // Rows of n scores, times scale. Returns which lanes a threshold exists for.
  template <typename T>
  auto read(const T* const* x, S scale) {
    const V low(-infinity<V>()), factor(scale);
    V most = low, bad(S(0));
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t j = b * V::size;
      const int count = int(n_ - j < V::size ? n_ - j : V::size);
      V rows[V::size];
      for (int r = 0; r < V::size; ++r)
        rows[r] = (count == V::size ? V::load(x[r] + j) : V::load(x[r] + j, count)) * factor;
      fastops::cpu::transpose(rows);
      for (int i = 0; i < V::size; ++i) {
        const V s = i < count ? rows[i] : low;
        most = max(s, most);
        bad = select(is_nan(s), s, bad);
        s.store(at(j + i));
      }
    }
    for (int64_t j = 0; j < blocks_ * V::size; ++j) (V::load(at(j)) - most).store(at(j));
    return both(both(low < most, most < V(infinity<V>())),
                V(S(-1)) < select(is_nan(bad), low, bad));
  }

  // Newton's steps from tau = -1 (root.h) until a further one would not show: they converge
  // quadratically (square), or are exact on the right support (linear). The last is still taken.
  void solve() {
    constexpr bool wide = sizeof(S) == 8;
    const V enough(S(kPower == Power::square ? (wide ? 1e-10 : 1e-5) : (wide ? 2e-16 : 1.2e-7)));
    tau_ = V(S(-1));
    auto moving = enough < V(S(1));
    for (int i = 0; i < 100 && any(moving); ++i) {
      V f, g;
      sums(f, g);
      const V step = (f - (kPower == Power::linear ? V(S(1)) : sqrt(f))) / g;
      tau_ = select(moving, tau_ + step, tau_);
      moving = both(moving, enough < step);
    }
  }

  // `stream` where a row's vectors are whole lines.
  template <typename T>
  void write(T* const* out, int count, bool stream) const {
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t j = b * V::size;
      const int width = int(n_ - j < V::size ? n_ - j : V::size);
      V rows[V::size];
      for (int i = 0; i < V::size; ++i) {
        const V w = weight(j + i);
        rows[i] = kPower == Power::square ? w * w : w;
      }
      fastops::cpu::transpose(rows);
      for (int r = 0; r < count; ++r) {
        if (width < V::size) rows[r].store(out[r] + j, width);
        else if (stream) rows[r].stream(out[r] + j);
        else rows[r].store(out[r] + j);
      }
    }
  }

 private:
  S* at(int64_t j) const { return d_ + j * V::size; }

  V weight(int64_t j) const {
    const V d = V::load(at(j)), zero(S(0));
    if constexpr (kPower == Power::linear) return max(d - tau_, zero);
    else return max(fma(d, V(S(0.5)), zero - tau_), zero);
  }

  // Sums of y and of y^(2 - alpha): within a block in S, over blocks with what rounding loses.
  void sums(V& f, V& g) const {
    const V zero(S(0)), one(S(1));
    V lost = zero;
    f = g = zero;
    for (int64_t b = 0; b < blocks_; ++b) {
      V y[2] = {zero, zero}, slope[2] = {zero, zero};
      for (int i = 0; i < V::size; ++i) {
        const V w = weight(b * V::size + i);
        if constexpr (kPower == Power::linear) {
          y[i % 2] = y[i % 2] + w;
          slope[i % 2] = slope[i % 2] + select(zero < w, one, zero);
        } else {
          y[i % 2] = fma(w, w, y[i % 2]);
          slope[i % 2] = slope[i % 2] + w;
        }
      }
      const V term = (y[0] + y[1]) - lost, sum = f + term;
      lost = (sum - f) - term;
      f = sum;
      g = g + (slope[0] + slope[1]);
    }
  }

  S* d_;  // [n, padded][V::size]: scores minus their row's maximum
  int64_t n_, blocks_;
  V tau_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
