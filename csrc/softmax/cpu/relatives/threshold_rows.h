// entmax of rows in one piece, for alpha > 1, as sparse_rows.h has it.
//
// A row is read from memory once, for its maximum and the greatest of its groups, which bound its
// threshold; then, out of the caches, for the elements above that bound. Only of these are powers
// taken.
#pragma once

#include "softmax/cpu/relatives/maps.h"
#include "softmax/cpu/relatives/sparse_rows.h"

namespace fastops::softmax::cpu {
namespace {

// Whether these rows can be taken so.
inline bool can_threshold_rows(const MapParams& p) {
  return plain_entmax_forward(p) && p.alpha > 1 && p.x.dtype == p.out.dtype;
}

template <typename V, Power kPower, typename T>
class ThresholdRows : public SparseRows<ThresholdRows<V, kPower, T>, V, T> {
  using Base = SparseRows<ThresholdRows<V, kPower, T>, V, T>;
  using Base::at, Base::group_, Base::n_, Base::vectors_;

 public:
  using S = typename V::Scalar;

  struct Row : SparseRow<T> {
    const T* x;
    Packed<V> packed;
    Tops<V> tops;
    V most, bad;
  };

  ThresholdRows(const MapParams& p, bool stream)
      : Base(p.shape, stream), p_(p), root_(p.alpha), scale_(S(p.scale)) {
    const int64_t about = vectors_ / 32;  // for 32 groups
    step_ = about < 4 ? 4 : about > 64 ? 64 : about;
  }

  void lay(Row* rows, fastops::cpu::ScratchPieces& pieces) const {
    // A piece of reading may end within a group.
    const int64_t groups = vectors_ / step_ + vectors_ / Base::kVectors + 2;
    for (Row* r = rows; r < rows + group_; ++r) {
      r->where = pieces.take<uint32_t>(vectors_ + 1);
      r->tops.values = pieces.take<S>(groups * V::size);
      S* const values = pieces.take<S>(Packed<V>::most_values(n_));
      r->packed.lay(values, pieces.take<uint16_t>(Packed<V>::most_lanes(n_)));
    }
  }

  void start(Row& r, const RowCursor& cursor) const {
    r.x = static_cast<const T*>(p_.x.data) + cursor.offset(p_.x.row_stride);
    r.out = static_cast<T*>(p_.out.data) + cursor.offset(p_.out.row_stride);
    r.most = V(-infinity<V>());
    r.bad = V(S(0));
    r.tops.count = r.count = 0;
  }

  void read(Row& r, int64_t from, int64_t to) const {
    const V low(-infinity<V>());
    V most = r.most, bad = r.bad, top = low;
    const auto look = [&](V v) {
      top = max(v, top);
      bad = select(is_nan(v), v, bad);
    };
    const int64_t whole = to * V::size <= n_ ? to : to - 1;
    for (int64_t k = from; k < to; k += step_, top = low) {
      const int64_t end = k + step_ < whole ? k + step_ : whole;
      for (int64_t i = k; i < end; ++i) {
        prefetch(reinterpret_cast<const char*>(r.x + i * V::size) + kAhead);
        look(V::load(r.x + i * V::size) * scale_);
      }
      if (k + step_ >= to && whole < to) look(at(r.x, whole, -infinity<V>()) * scale_);
      top.store(r.tops.values + r.tops.count);
      r.tops.count += V::size;
      most = max(top, most);
    }
    r.most = most;
    r.bad = bad;
  }

  void solve(Row* rows, int count, S* spare) const {
    for (int i = 0; i < count; ++i) solve(rows[i], spare);
  }

  V value(Row& r, int64_t i) const { return r.packed.next(i); }

 private:
  static constexpr int64_t kAhead = 2048;  // bytes

  void solve(Row& r, S* spare) const {
    const S max = hmax(r.most), nan = S(__builtin_nanf(""));
    r.packed.start(r.packed.values);
    if (any(is_nan(r.bad)) || max == infinity<V>()) return fill(r, nan);
    if (max == -infinity<V>()) return p_.zero_masked_rows ? void() : fill(r, nan);
    const double bound = threshold_bound(root_, n_, max, r.tops, spare);
    const V m(max), least(root_.least(bound));
    const S* top = r.tops.values;
    for (int64_t from = 0; from < vectors_; from += Base::kVectors) {
      const int64_t to = from + Base::kVectors < vectors_ ? from + Base::kVectors : vectors_;
      for (int64_t k = from; k < to; k += step_, top += V::size) {
        const int64_t end = k + step_ < to ? k + step_ : to;
        this->ask_ahead(r.x, k, end);
        if (!any(least < V::load(top) - m)) continue;
        for (int64_t i = k; i < end; ++i)
          take(r, i, at(r.x, i, -infinity<V>()) * scale_ - m, least);
      }
    }
    const int64_t count = r.packed.count;
    S* const packed = r.packed.values;
    V(-infinity<V>()).store(packed + count);

    Candidates<V> candidates{spare, count};
    for (int64_t j = 0; j < count + V::size; j += V::size) V::load(packed + j).store(spare + j);
    const Threshold<V> found = root_.solve(candidates, bound, n_);
    const Terms<V, kPower> terms(root_.alpha() - 1, found.tau);
    // The terms of a threshold add up to 1 but for its rounding: one more rounding, not two.
    const V rest(S(1 / found.total - 1));
    for (int64_t j = 0; j < count; j += V::size) {
      const V y = terms(V::load(packed + j));
      fma(y, rest, y).store(packed + j);
    }
    r.packed.rewind();
  }

  static void take(Row& r, int64_t k, V d, V least) {
    const unsigned in = lane_bits(least < d);
    r.packed.add(r.count, d, in);
    r.where[r.count] = uint32_t(k);
    r.count += in != 0;
  }
  void fill(Row& r, S value) const {
    for (int64_t k = 0; k < vectors_; ++k) {
      r.packed.add(k, V(value), (1u << V::size) - 1);
      r.where[k] = uint32_t(k);
    }
    r.count = vectors_;
    r.packed.rewind();
  }

  const MapParams& p_;
  Root<V, kPower> root_;
  V scale_;
  int64_t step_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
