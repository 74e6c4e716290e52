// Softmax of a row and what may be among its k greatest, in one read from where it lies.
//
// Exponentials are taken before the row's maximum is known, of scores as they are: as long as the
// maximum is within kNear of 0, as those of most models are, no sum overflows and nothing that
// matters is lost. Other rows are read again, from their maximum.
#pragma once

#include "cpu/exp_score.h"
#include "softmax/cpu/relatives/rows.h"

namespace fastops::softmax::cpu {
namespace {

inline constexpr int kNetwork = 16;      // maxima of a row, and candidates that can be sorted
inline constexpr int64_t kLaneTopk = 8;  // greatest k by lanes (topk_lanes.h): of 16 maxima half

// Elements above `low`, by rising index: their scores and places, and how many. `tops`: the lane
// maxima of every `step` elements. Stops where there are more than `most`, with up to four vectors
// of them. vector_at(j): -inf beyond the row's end. Where some k elements are less than one in four
// vectors, what is to be looked at is listed first: a branch for each would often be mispredicted.
template <typename V, typename F>
inline int64_t collect(int64_t n, int64_t k, F vector_at, const typename V::Scalar* tops,
                       int64_t step, typename V::Scalar low, int64_t most,
                       typename V::Scalar* score, typename V::Scalar* place) {
  using S = typename V::Scalar;
  constexpr int kTogether = 64;
  constexpr int64_t kBlock = 4 * V::size;
  const V bound(low);
  alignas(64) S lanes[V::size];
  for (int i = 0; i < V::size; ++i) lanes[i] = S(i);
  const V lane = V::load(lanes);
  int64_t count = 0;
  const auto take = [&](int64_t j) {
    const V v = vector_at(j);
    const unsigned in = lane_bits(bound < v);
    compress(lane + V(S(j)), in, place + count);
    count += compress(v, in, score + count);
  };
  if (n <= k * kBlock) {
    for (int64_t j = 0; j < n && count <= most; j += V::size) take(j);
    return count;
  }
  int64_t blocks[kTogether];
  int listed = 0;
  const auto take_listed = [&] {
    for (int b = 0; b < listed && count <= most; ++b)
      for (int i = 0; i < 4; ++i) take(blocks[b] + i * V::size);
    listed = 0;
  };
  for (int64_t begin = 0; begin < n && count <= most; begin += kTogether * step) {
    uint64_t groups = 0;
    for (int g = 0; g < kTogether && begin + g * step < n; ++g, tops += V::size)
      groups |= uint64_t(any(bound < V::load(tops))) << g;
    for (; groups && count <= most; groups &= groups - 1) {
      int64_t j = begin + __builtin_ctzll(groups) * step;
      const int64_t end = j + step;
      for (; j + kBlock <= end; j += kBlock) {
        V v[4];
        for (int i = 0; i < 4; ++i) v[i] = vector_at(j + i * V::size);
        blocks[listed] = j;
        listed += any(bound < max(max(v[0], v[1]), max(v[2], v[3])));
        if (listed == kTogether) take_listed();
      }
      if (j == end) continue;
      take_listed();
      for (; j < end && count <= most; j += V::size) take(j);
    }
  }
  take_listed();
  return count;
}

template <typename V, typename T>
class RowReader {
 public:
  using S = typename V::Scalar;

  static constexpr S kLowest = S(sizeof(S) == 8 ? -__DBL_MAX__ : -__FLT_MAX__);
  static constexpr S kNear = 40;  // less than half of what a power of e has room for

  // The more pieces a row has, the fewer elements are looked at again for the k greatest.
  static constexpr int64_t most_pieces(int64_t k) { return k <= 16 ? 64 : k < 64 ? 4 * k : 256; }

  explicit RowReader(const TopkParams& p)
      : n_(p.shape.n),
        step_((n_ + most_pieces(p.k) * kUnit - 1) / (most_pieces(p.k) * kUnit) * kUnit),
        pieces_((n_ + step_ - 1) / step_),
        every_line_(p.k <= kLaneTopk && n_ * int64_t(sizeof(T)) <= kPageBytes) {}

  int64_t step() const { return step_; }  // elements in a piece
  int64_t tops() const { return pieces_ * V::size; }

  // The vector from j on, -inf beyond the row's end.
  V at(const T* x, int64_t j) const {
    if (j + V::size <= n_) return V::load(x + j);
    const V low(-infinity<V>());
    return j < n_ ? select(V::first(int(n_ - j)), V::load(x + j, int(n_ - j)), low) : low;
  }

  // Of kNetwork parts of the row the maxima, and the sums of e^(x - from); and the lane maxima of
  // each piece. Sums are of pieces, with what adding them up loses to rounding.
  void scan(const T* x, S from, S* maxima, S* sums, S* tops) const {
    if (from == S(0)) scan_from<false>(x, from, maxima, sums, tops);
    else scan_from<true>(x, from, maxima, sums, tops);
  }

 private:
  static constexpr int kParts = kNetwork / V::size;  // vectors of a row's maxima
  static constexpr int kBlock = 4 * kNetwork;        // elements read together
  static constexpr int64_t kUnit = 4 * kBlock;

  template <bool kShifted>
  void scan_from(const T* x, S from, S* maxima, S* sums, S* tops) const {
    const V start(from), low(-infinity<V>()), zero(S(0));
    V most[kParts], sum[kParts], lost[kParts], part[kParts], top = low;
    for (int u = 0; u < kParts; ++u) {
      most[u] = V(kLowest);
      sum[u] = lost[u] = zero;
    }
    const auto add = [&](int64_t j, auto load) {
      for (int u = 0; u < kParts; ++u) {
        const auto at_vector = [&](int i) { return j + (i * kParts + u) * V::size; };
        V v[4];
        for (int i = 0; i < 4; ++i) v[i] = load(at_vector(i));
        if (every_line_)
          for (int i = 0; i < 4; ++i)
            prefetch(reinterpret_cast<const char*>(x + at_vector(i)) + kPageBytes);
        const V block = max(max(v[0], v[1]), max(v[2], v[3]));
        most[u] = max(block, most[u]);
        top = max(block, top);
        for (V& e : v) e = exp_term(kShifted ? e - start : e);
        part[u] = part[u] + ((v[0] + v[1]) + (v[2] + v[3]));
      }
    };
    for (int64_t begin = 0; begin < n_; begin += step_) {
      const int64_t end = begin + step_ < n_ ? begin + step_ : n_;
      for (V& p : part) p = zero;
      for (int64_t unit = begin; unit < end; unit += kUnit) {
        const int64_t stop = unit + kUnit < end ? unit + kUnit : end;
        if (!every_line_) prefetch_page(x + unit);
        int64_t j = unit;
        for (; j + kBlock <= stop; j += kBlock) add(j, [&](int64_t i) { return V::load(x + i); });
        if (j < stop) add(j, [&](int64_t i) { return at(x, i); });
      }
      for (int u = 0; u < kParts; ++u) {
        const V old = sum[u], term = part[u] - lost[u];
        sum[u] = old + term;
        lost[u] = (sum[u] - old) - term;
      }
      top.store(tops);
      tops += V::size;
      top = low;
    }
    for (int u = 0; u < kParts; ++u) {
      most[u].store(maxima + u * V::size);
      sum[u].store(sums + u * V::size);
    }
  }

  int64_t n_, step_, pieces_;
  bool every_line_;  // between groups of short rows there is much else to do
};

}  // namespace
}  // namespace fastops::softmax::cpu
