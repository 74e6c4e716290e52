// The gradient of entmax for rows in one piece, without a mask: dx = g (dy - sum g dy / sum g),
// g = y^(2 - alpha).
//
// Most of a row is off the support, and there dx is 0 whatever dy is. So y is read first, and only
// of its vectors that are not all 0 is dy read at all: it is asked for at once and used when the
// next rows have been read.
#pragma once

#include "softmax/cpu/relatives/maps.h"
#include "softmax/cpu/relatives/sparse_rows.h"

namespace fastops::softmax::cpu {
namespace {

// y^(2 - alpha) on the support, 0 off it.
template <Power kPower, typename V>
inline V slope_of(V y, V exponent) {
  using S = typename V::Scalar;
  const V none(S(0));
  if constexpr (kPower == Power::exponential) return y;
  else if constexpr (kPower == Power::linear) return select(none < y, V(S(1)), y);
  else if constexpr (kPower == Power::square) return sqrt(y);
  else return select(none < y, exp(log(y) * exponent), y);
}

// Sums of g and g dy: in fp64 between blocks of vectors.
template <typename V>
class SlopeSums {
 public:
  using S = typename V::Scalar;

  void add(V g, V dy) {
    const V zero(S(0));
    slopes_ = slopes_ + g;
    weighted_ = weighted_ + select(g == zero, zero, g * dy);
    if (++count_ == kBlock) flush();
  }
  S mean() {
    flush();
    return S(all_slopes_ == 0 ? 0 : all_weighted_ / all_slopes_);
  }

 private:
  static constexpr int kBlock = 64;

  void flush() {
    all_slopes_ += double(hsum(slopes_));
    all_weighted_ += double(hsum(weighted_));
    slopes_ = weighted_ = V(S(0));
    count_ = 0;
  }

  V slopes_{S(0)}, weighted_{S(0)};
  int count_ = 0;
  double all_slopes_ = 0, all_weighted_ = 0;
};

// Whether these rows can be taken so.
inline bool can_gradient_rows(const MapParams& p) {
  return p.map == Map::entmax && !p.target && p.out && !p.row_alpha && p.alpha != 1 && !p.mask &&
         !p.lengths && !p.causal && p.x.dtype == p.dy.dtype && p.x.dtype == p.out.dtype &&
         contiguous(p.shape, p.x) && contiguous(p.shape, p.dy) && contiguous(p.shape, p.out);
}

template <typename V, Power kPower, typename T>
class GradientRows : public SparseRows<GradientRows<V, kPower, T>, V, T> {
  using Base = SparseRows<GradientRows<V, kPower, T>, V, T>;
  using Base::at, Base::n_, Base::vectors_;

 public:
  using S = typename V::Scalar;

  struct Row : SparseRow<T> {
    const T* y;
    const T* dy;
    S* slopes;  // of the numbered vectors, if they are kept
    S mean, scale;
  };

  GradientRows(const MapParams& p, bool stream)
      : Base(p.shape, stream), p_(p), exponent_(S(2 - p.alpha)) {}

  int64_t room() const {
    return places() * (int64_t(sizeof(uint32_t)) + (kKeeps ? V::size * int64_t(sizeof(S)) : 0));
  }
  void lay(Row& r, char* scratch) const {
    r.slopes = reinterpret_cast<S*>(scratch);
    r.where = reinterpret_cast<uint32_t*>(r.slopes + (kKeeps ? places() * V::size : 0));
  }

  void start(Row& r, const RowCursor& cursor, int64_t) const {
    r.y = static_cast<const T*>(p_.x.data) + cursor.offset(p_.x.row_stride);
    r.dy = static_cast<const T*>(p_.dy.data) + cursor.offset(p_.dy.row_stride);
    r.out = static_cast<T*>(p_.out.data) + cursor.offset(p_.out.row_stride);
    r.scale = scale_of<V>(p_, cursor);
    r.count = 0;
  }

  void read(Row& r, int64_t from, int64_t to) const {
    const V zero(S(0));
    const auto look = [&](int64_t k, V y) {
      const bool in = lane_bits(max(zero, y) == zero) != (1u << V::size) - 1;  // or NaN
      const T* const wanted = in ? r.dy : r.y;
      prefetch(wanted + k * V::size);
      r.where[r.count] = uint32_t(k);
      r.count += in;
    };
    const int64_t whole = to * V::size <= n_ ? to : to - 1;
    for (int64_t k = from; k < whole; ++k) {
      prefetch(reinterpret_cast<const char*>(r.y + k * V::size) + kAhead);
      look(k, V::load(r.y + k * V::size));
    }
    if (whole < to) look(whole, at(r.y, whole));
  }

  void solve(Row& r, S*) const {
    SlopeSums<V> sums;
    for (int64_t i = 0; i < r.count; ++i) {
      const V g = slope(at(r.y, r.where[i]));
      if constexpr (kKeeps) g.store(r.slopes + i * V::size);
      sums.add(g, at(r.dy, r.where[i]));
    }
    r.mean = sums.mean();
  }

  V value(Row& r, int64_t i) const {
    const int64_t k = r.where[i];
    const V zero(S(0)), g = kKeeps ? V::load(r.slopes + i * V::size) : slope(at(r.y, k));
    return select(g == zero, zero, g * (at(r.dy, k) - V(r.mean)) * V(r.scale));
  }

 private:
  static constexpr int64_t kAhead = 2048;  // bytes
  // What is cheap to find again is not kept.
  static constexpr bool kKeeps = kPower != Power::linear;

  int64_t places() const { return (vectors_ + 1 + 15) / 16 * 16; }
  V slope(V y) const { return slope_of<kPower>(max(V(S(0)), y), exponent_); }

  const MapParams& p_;
  V exponent_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
