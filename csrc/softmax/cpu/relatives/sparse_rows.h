// Rows whose results are 0 but for few vectors, in one piece each.
//
// Reading a row goes hand in hand with writing the results of another, chunk by chunk: memory has
// work while the few results are found. A row keeps the numbers of the vectors that are not all 0;
// between them zeros are written. Rows without a 0 take the same way.
#pragma once

#include "softmax/cpu/relatives/rows.h"

namespace fastops::softmax::cpu {
namespace {

template <typename T>
struct SparseRow {
  T* out;
  uint32_t* where;  // vectors that are not all 0
  int64_t count;    // of them
  int64_t written;  // of them
};

// Results of a row without what is 0 between them: what is to be worked out for each costs by their
// number alone.
template <typename V>
class Packed {
 public:
  using S = typename V::Scalar;

  // For rows of n: elements of `values`, lanes.
  static constexpr int64_t most_values(int64_t n) { return padded<V>(n); }
  static constexpr int64_t most_lanes(int64_t n) { return n / V::size + 2; }

  void lay(S* to, uint16_t* lanes) {
    values = to;
    lanes_ = lanes;
  }
  void start(S* to) {
    values = to;
    count = 0;
  }
  // The lanes of v whose bits are set, as the i-th vector.
  void add(int64_t i, V v, unsigned bits) {
    lanes_[i] = uint16_t(bits);
    count += compress(v, bits, values + count);
  }
  // Gives the vectors back, in order from the first, with 0 in the other lanes.
  void rewind() { next_ = values; }
  V next(int64_t i) {
    const V v = expand(V::load(next_), lanes_[i]);
    next_ += __builtin_popcount(lanes_[i]);
    return v;
  }

  S* values;
  int64_t count;  // of values

 private:
  uint16_t* lanes_;
  const S* next_;
};

// Job has
//   Row : SparseRow<T>           a row in work
//   lay(Row*, pieces)            where the parts of a group of rows are
//   start(Row&, cursor)          must set out, count = 0
//   read(Row&, from, to)         vectors [from, to) of its input; to number some of them
//   solve(Row*, count, spare)    when so many rows are read; spare: scratch for a group and a row
//   value(Row&, i)               the i-th numbered vector of results, in order
template <typename Job, typename V, typename T>
class SparseRows {
 public:
  using S = typename V::Scalar;

  SparseRows(const Shape& shape, bool stream)
      : n_(shape.n),
        vectors_((n_ + V::size - 1) / V::size),
        group_(group_of(n_)),
        shape_(shape),
        stream_(stream) {}

  void run() const {
    const int64_t rows = shape_.rows;
    parallel_for(0, (rows + group_ - 1) / group_, rows_per_task(n_ * group_),
                 [&](int64_t begin, int64_t end) {
                   const int64_t last = end * group_ < rows ? end * group_ : rows;
                   some_rows(begin * group_, last);
                 });
  }

 protected:
  // Vector k of a row of memory, `beyond` the row's end.
  V at(const T* row, int64_t k, S beyond = S(0)) const {
    const int64_t j = k * V::size;
    if (j + V::size <= n_) return V::load(row + j);
    const int left = int(n_ - j);
    return select(V::first(left), V::load(row + j, left), V(beyond));
  }

  // Solving asks for vectors [from, to) of what is read after it, mostly, so that memory has work
  // meanwhile: of the row that is a group further down.
  void ask_ahead(const T* row, int64_t from, int64_t to) const {
    if (n_ > 4 * kTogether) return;  // would not stay in L2
    for (int64_t k = from; k < to; ++k) prefetch(row + n_ * group_ + k * V::size);
  }

  static constexpr int64_t kVectors = 64;  // of a chunk
  int64_t n_, vectors_;
  int group_;  // rows that are read before any of their results are written

 private:
  static constexpr int64_t kTogether = 4096;  // elements of a group
  static constexpr int kMostRows = 16;

  static int group_of(int64_t n) {
    const int64_t fit = kTogether / n;
    return int(fit < 1 ? 1 : fit < kMostRows ? fit : kMostRows);
  }

  const Job& job() const { return static_cast<const Job&>(*this); }

  void some_rows(int64_t begin, int64_t end) const {
    using Row = typename Job::Row;
    Row rows[2][kMostRows];
    S* spare;
    fastops::cpu::lay_thread_scratch([&](fastops::cpu::ScratchPieces& pieces) {
      spare = pieces.take<S>((group_ + 1) * padded<V>(n_));
      for (Row* const group : rows) job().lay(group, pieces);
    });
    RowCursor cursor(shape_, begin);
    int before = 0, now = 0;
    for (int64_t first = begin; first < end + group_; first += group_, now = 1 - now) {
      const int64_t left = end - first;
      const int count = int(left < 0 ? 0 : left < group_ ? left : group_);
      Row *const next = rows[now], *const ready = rows[1 - now];
      for (int i = 0; i < count; ++i, cursor.next()) job().start(next[i], cursor);
      for (int i = 0; i < count || i < before; ++i) {
        for (int64_t from = 0; from < vectors_; from += kVectors) {
          const int64_t to = from + kVectors < vectors_ ? from + kVectors : vectors_;
          if (i < count) job().read(next[i], from, to);
          if (i < before) write(ready[i], from, to, spare);
        }
      }
      for (int i = 0; i < count; ++i) next[i].written = 0;
      if (count > 0) job().solve(next, count, spare);
      before = count;
    }
    if (stream_) store_fence();
  }

  // Rows that do not start at a whole vector of memory are put together in scratch.
  template <typename Row>
  void write(Row& r, int64_t from, int64_t to, S* spare) const {
    if (!stream_) return write_as<false>(r, from, to, r.out);
    if (reinterpret_cast<uintptr_t>(r.out) % (V::size * sizeof(T)) == 0)
      return write_as<true>(r, from, to, r.out);
    write_as<false>(r, from, to, spare);
    if (to == vectors_)
      emit_piece<V>(r.out, n_, true, [&](int64_t j) { return V::load(spare + j); });
  }

  template <bool kStream, typename Row, typename To>
  void write_as(Row& r, int64_t from, int64_t to, To* out) const {
    const V zero(S(0));
    const int64_t whole = to * V::size <= n_ ? to : to - 1;
    const auto put = [&](int64_t k, V v) {
      if (k >= whole) v.store(out + k * V::size, int(n_ - k * V::size));
      else if constexpr (kStream) v.stream(out + k * V::size);
      else v.store(out + k * V::size);
    };
    int64_t k = from;
    for (; r.written < r.count && int64_t(r.where[r.written]) < to; ++r.written) {
      for (const int64_t next = r.where[r.written]; k < next; ++k) put(k, zero);
      put(k++, job().value(r, r.written));
    }
    for (; k < to; ++k) put(k, zero);
  }

  const Shape& shape_;
  bool stream_;
};

}  // namespace
}  // namespace fastops::softmax::cpu
