// Softmax and its greatest element alone: nothing to collect and nothing to sort.
//
// While a row is read each lane keeps its maximum and the block where it was first. What follows is
// done for as many rows as there are lanes: three reductions across lanes, of maxima, of the least
// block of those that have the row's, and of sums, each 30 shuffles for 16 rows. The place in the
// block is looked for last, in L1.
//
// Budget on AVX-512, fp32 rows of 256: 5 products (one a clock) and 7 other operations (two a clock
// with them) a vector, 100 clocks, and about 60 a row for the rest: 47 ns in cache, 57 from memory.
// Two or four rows at a time, or every line asked for, took longer.
#include <type_traits>

#include "cpu/transpose.h"
#include "softmax/cpu/relatives/kernels.h"
#include "softmax/cpu/relatives/row_reader.h"
#include "softmax/cpu/relatives/topk_groups.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

// Lane r = op over the lanes of rows[r].
template <typename Op>
inline VecF32 over_lanes(const VecF32* rows, Op op) {
  return transpose_reduce(rows, op);
}
template <typename Op>
inline VecF64 over_lanes(const VecF64* rows, Op op) {
  VecF64 lanes[VecF64::size];
  for (int i = 0; i < VecF64::size; ++i) lanes[i] = rows[i];
  fastops::cpu::transpose(lanes);
  VecF64 all = lanes[0];
  for (int i = 1; i < VecF64::size; ++i) all = op(lanes[i], all);
  return all;
}

// kShort: the next page goes to L2 alone. 64 MB of rows of 256 take 3.8 ms in place of 4.1, of 4096
// 2.9 in place of 2.8.
template <typename V, typename T, bool kShort>
class TopkFirst {
 public:
  using S = typename V::Scalar;

  explicit TopkFirst(const TopkParams& p) : p_(p), n_(p.shape.n), reader_(p) {}

  // `count` rows from the cursor on; which of them have been done: those without a score above
  // -inf, with a NaN or with an infinity have not.
  unsigned operator()(const RowCursor& start, int count) const {
    const V low(kLowest), high(infinity<V>()), near(kNear), zero(S(0));
    V most[V::size], block[V::size], sum[V::size];
    for (int r = count; r < V::size; ++r) {
      most[r] = low;
      block[r] = sum[r] = zero;
    }
    int64_t at[V::size];
    offsets(p_.shape, start, count, p_.x, at);
    const T* const x = static_cast<const T*>(p_.x.data);
    for (int r = 0; r < count; ++r) scan<false>(x + at[r], S(0), most[r], sum[r], block[r]);
    const V all = over_lanes(most, [](V a, V b) { return max(a, b); });
    const auto usable = both(low < all, all < high), far = near < magnitude(all);
    alignas(64) S greatest[V::size], blocks[V::size], lse[V::size];
    all.store(greatest);
    V from = zero;
    if (const unsigned again = lane_bits(both(usable, far))) {
      from = select(far, all, from);
      for (int r = 0; r < count; ++r)
        if (again >> r & 1) scan<true>(x + at[r], greatest[r], most[r], sum[r], block[r]);
    }
    for (int r = 0; r < V::size; ++r) block[r] = select(most[r] == V(greatest[r]), block[r], high);
    over_lanes(block, [](V a, V b) { return min(a, b); }).store(blocks);
    const V total = over_lanes(sum, [](V a, V b) { return a + b; });
    const V value = p_.renormalize ? V(S(1)) : exp_term(all - from) / total;
    if (p_.lse) (all - log(value)).store(lse);
    const unsigned done = lane_bits(both(usable, total < high));
    alignas(64) S values[V::size];
    value.store(values);
    write_groups<V>(p_, start, count, done, lse, [&](int r, auto* to, int64_t* index) {
      if constexpr (std::is_same_v<decltype(to), S*>) *to = values[r];
      else V(values[r]).store(to, 1);
      *index = first_in_block(x + at[r], int64_t(blocks[r]), greatest[r]);
    });
    return done;
  }

 private:
  static constexpr S kLowest = RowReader<V, T>::kLowest, kNear = RowReader<V, T>::kNear;
  static constexpr int64_t kBlock = 4 * V::size;  // elements that a maximum is of
  static constexpr int64_t kPiece = 4 * kBlock;   // elements added up without regard to rounding

  // Of each lane the maximum, the sum of e^(x - from) and the first element of the block that the
  // maximum is first in. Sums are of pieces, with what adding them up loses to rounding.
  template <bool kShifted>
  [[gnu::always_inline]] void scan(const T* x, S from, V& most, V& sum, V& block) const {
    const V start(from), zero(S(0)), step((S(kBlock)));
    V lane_most(kLowest), first = zero, here = zero, all = zero, lost = zero;
    for (int64_t begin = 0; begin < n_; begin += kPiece) {
      const int64_t end = begin + kPiece < n_ ? begin + kPiece : n_;
      V part = zero;
      if constexpr (kShort) prefetch(reinterpret_cast<const char*>(x + begin) + kPageBytes);
      else prefetch_page(x + begin);
      const auto add = [&](auto load) {
        V v[4];
        for (int i = 0; i < 4; ++i) v[i] = load(i * V::size);
        const V top = max(max(v[0], v[1]), max(v[2], v[3]));
        first = select(lane_most < top, here, first);
        lane_most = max(top, lane_most);
        here = here + step;
        for (V& e : v) e = exp_term(kShifted ? e - start : e);
        part = part + ((v[0] + v[1]) + (v[2] + v[3]));
      };
      int64_t j = begin;
      for (; j + kBlock <= end; j += kBlock) add([&](int64_t i) { return V::load(x + j + i); });
      if (j < end) add([&](int64_t i) { return reader_.at(x, j + i); });
      if (begin == 0) {
        all = part;
        continue;
      }
      const V old = all, term = part - lost;
      all = old + term;
      lost = (all - old) - term;
    }
    most = lane_most;
    sum = all;
    block = first;
  }

  // The first place of `score` in the block from j on that has it.
  int64_t first_in_block(const T* x, int64_t j, S score) const {
    static_assert(kBlock <= 64);
    const V wanted(score);
    uint64_t here = 0;
    const auto look = [&](auto load) {
      for (int i = 0; i < kBlock; i += V::size)
        here |= uint64_t(lane_bits(load(j + i) == wanted)) << i;
    };
    if (j + kBlock <= n_) look([&](int64_t i) { return V::load(x + i); });
    else look([&](int64_t i) { return reader_.at(x, i); });
    return j + __builtin_ctzll(here);
  }

  const TopkParams& p_;
  int64_t n_;
  RowReader<V, T> reader_;
};

}  // namespace

void topk_first(const TopkParams& p) {
  with_float(p.x.dtype, [&](auto t) {
    using T = decltype(t);
    using V = std::conditional_t<sizeof(T) == 8, VecF64, VecF32>;
    if (p.shape.n * int64_t(sizeof(T)) < kPageBytes) for_groups<V>(p, TopkFirst<V, T, true>(p));
    else for_groups<V>(p, TopkFirst<V, T, false>(p));
  });
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
