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
  return plain_entmax(p) && p.alpha != 1 && p.x.dtype == p.dy.dtype && p.x.dtype == p.out.dtype &&
         contiguous(p.shape, p.dy);
}

template <typename V, Power kPower, typename T>
class GradientRows : public SparseRows<GradientRows<V, kPower, T>, V, T> {
  using Base = SparseRows<GradientRows<V, kPower, T>, V, T>;
  using Base::at, Base::group_, Base::n_, Base::vectors_;

 public:
  using S = typename V::Scalar;

  struct Row : SparseRow<T> {
    const T* y;
    const T* dy;
    Packed<V> packed;
    S mean, scale;
  };

  GradientRows(const MapParams& p, bool stream)
      : Base(p.shape, stream), p_(p), exponent_(S(2 - p.alpha)) {}

  void lay(Row* rows, fastops::cpu::ScratchPieces& pieces) const {
    S* const values = kPacks ? pieces.take<S>(group_ * Packed<V>::most_values(n_)) : nullptr;
    for (Row* r = rows; r < rows + group_; ++r) {
      r->where = pieces.take<uint32_t>(vectors_ + 1);
      if (kPacks) r->packed.lay(values, pieces.take<uint16_t>(Packed<V>::most_lanes(n_)));
    }
  }

  void start(Row& r, const RowCursor& cursor) const {
    r.y = static_cast<const T*>(p_.x.data) + cursor.offset(p_.x.row_stride);
    r.dy = static_cast<const T*>(p_.dy.data) + cursor.offset(p_.dy.row_stride);
    r.out = static_cast<T*>(p_.out.data) + cursor.offset(p_.out.row_stride);
    r.scale = scale_of<V>(p_, cursor);
    r.count = 0;
  }

  void read(Row& r, int64_t from, int64_t to) const {
    const auto look = [&](int64_t k, V y) {
      const bool in = support(y) != 0;
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

  void solve(Row* rows, int count, S* spare) const {
    if constexpr (kPacks) return solve_packed(rows, count, spare);
    for (Row* r = rows; r < rows + count; ++r) {
      this->ask_ahead(r->y, 0, vectors_);
      SlopeSums<V> sums;
      for (int64_t i = 0; i < r->count; ++i) {
        const int64_t k = r->where[i];
        sums.add(slope(at(r->y, k)), at(r->dy, k));
      }
      r->mean = sums.mean();
    }
  }

  V value(Row& r, int64_t i) const {
    if constexpr (kPacks) return r.packed.next(i);
    const int64_t k = r.where[i];
    return gradient(slope(at(r.y, k)), at(r.dy, k), r);
  }

 private:
  static constexpr int64_t kAhead = 2048;  // bytes
  // Powers are taken of the support alone, what is cheap of whole vectors, twice.
  static constexpr bool kPacks = kPower == Power::general;

  // The lanes above 0, or NaN.
  static unsigned support(V y) {
    const V zero(S(0));
    return lane_bits(max(zero, y) == zero) ^ ((1u << V::size) - 1);
  }
  V slope(V y) const { return slope_of<kPower>(max(V(S(0)), y), exponent_); }
  static V gradient(V g, V dy, const Row& r) {
    const V zero(S(0));
    return select(g == zero, zero, g * (dy - V(r.mean)) * V(r.scale));
  }

  // One row after the other without a gap, so that the powers of short rows fill vectors. `dys`:
  // for dy, packed alike.
  void solve_packed(Row* rows, int count, S* dys) const {
    S* const values = rows[0].packed.values;
    int64_t total = 0;
    for (Row* r = rows; r < rows + count; ++r) {
      this->ask_ahead(r->y, 0, vectors_);
      r->packed.start(values + total);
      for (int64_t i = 0; i < r->count; ++i) {
        const int64_t k = r->where[i];
        const V y = at(r->y, k);
        const unsigned bits = support(y);
        compress(at(r->dy, k), bits, dys + total + r->packed.count);
        r->packed.add(i, y, bits);
      }
      total += r->packed.count;
    }
    V(S(0)).store(values + total);
    for (int64_t j = 0; j < total; j += V::size) slope(V::load(values + j)).store(values + j);
    for (Row* r = rows; r < rows + count; ++r) {
      S *const g = r->packed.values, *const dy = dys + (g - values);
      const int64_t n = r->packed.count, whole = n / V::size * V::size;
      const int left = int(n - whole);
      const V last = select(V::first(left), V::load(g + whole), V(S(0)));
      SlopeSums<V> sums;
      for (int64_t j = 0; j < whole; j += V::size) sums.add(V::load(g + j), V::load(dy + j));
      sums.add(last, V::load(dy + whole));
      r->mean = sums.mean();
      for (int64_t j = 0; j < whole; j += V::size)
        gradient(V::load(g + j), V::load(dy + j), *r).store(g + j);
      gradient(last, V::load(dy + whole), *r).store(g + whole, left);
      r->packed.rewind();
    }
  }

  const MapParams& p_;
  V exponent_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
