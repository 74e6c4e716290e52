// Match on a CPU: sources in the lanes, destinations broadcast, the running maximum and its index
// in the epilogue of each tile. The score matrix never exists.
//
// Destinations are packed normalised, in blocks that fit L2; sources are packed transposed, two
// vectors of them at a time. The cost is that of the matrix product plus a few percent.
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"
#include "merge/cpu/kernels.h"
#include "merge/cpu/screen.h"

namespace fastops::merge::cpu::FASTOPS_ISA {
namespace {

using namespace fastops::cpu;

inline constexpr int64_t kBlockBytes = 512 * 1024;  // of packed destinations
inline constexpr int64_t kLeastSources = 128;       // of one task
inline constexpr int64_t kFlopsPerTask = 1 << 19;   // below this a second thread does not pay
inline constexpr int64_t kAheadBytes = 16;          // of the next sample, asked for per channel
// Fewer are scored without a screen.
inline constexpr int64_t kScreenedChannels = 32, kScreenedDestinations = 48;
// Sweeps that do without a screen after one that held too little back, twice as many each time.
inline constexpr int kLeastPause = 4, kMostPause = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename S>
struct Range;
// Sums of squares outside these have lost digits to underflow, or are infinite.
template <>
struct Range<float> {
  static constexpr float low = 1e-30f, high = 1e37f;
};
template <>
struct Range<double> {
  static constexpr double low = 1e-290, high = 1e305;
};

// T: dtype of the metric, V: the vectors it is worked on in.
template <typename T, typename V>
class Matcher {
  using S = typename V::Scalar;
  static constexpr int L = V::size;
  // Destinations per tile: with two vectors of sources the accumulators fill most registers.
  static constexpr int kTile = L * sizeof(S) == 64 ? 8 : 6;

 public:
  Matcher(const MatchParams& p, bool screen) : p_(p), c_(p.channels) {
    screens_ = screen && Screen<V>::built && c_ >= kScreenedChannels &&
               p.part.num_dst >= kScreenedDestinations;
    const int64_t each = screens_ ? Screen<V>::bytes_each(c_) : int64_t(sizeof(S)) * c_;
    block_ = at_least(kBlockBytes / at_least(each, 1), 4 * kTile);
    block_ = at_most(block_ / kTile * kTile, at_least(p.part.num_dst, 1));
    const bool dense = p.heads == 1 && p.stride[3] == 1;
    direct_ = __is_same(T, S) && dense;
    looks_ahead_ = dense && p.stride[2] == c_;
  }

  // The sample that comes next is asked for from now on, while others are multiplied.
  void look_ahead(int64_t sample) {
    if (!looks_ahead_) return;
    ahead_ = reinterpret_cast<const char*>(token(sample, 0));
    ahead_end_ = reinterpret_cast<const char*>(token(sample, p_.part.num_tokens));
  }

  // Sources [begin, end) of a sample.
  void run(int64_t sample, int64_t begin, int64_t end) {
    const Partition& part = p_.part;
    const int64_t sources = ceil_div(end - begin, L) * L;
    lay_thread_scratch([&](ScratchPieces& pieces) {
      packed_dst_ = pieces.take<S>(block_ * c_);
      packed_src_ = pieces.take<S>(2 * L * c_);
      staged_ = pieces.take<S>(L * c_);
      best_ = pieces.take<S>(sources);
      index_ = pieces.take<S>(sources);
      dst_of_ = pieces.take<int32_t>(block_);
      if (screens_) screen_.lay(pieces, c_, block_);
    });
    screen_.dst = packed_dst_;
    screen_.src = packed_src_;

    int32_t first_dst = -1;
    for (int64_t i = 0; i < sources; ++i) {
      best_[i] = -S(__builtin_inff());
      index_[i] = S(-1);
    }
    for (int64_t j = 0; j < part.num_dst;) {
      int64_t count = 0;
      for (; j < part.num_dst && count < block_; ++j) {
        const int64_t token = part.dst(sample, j);
        if (!part.takes_part(sample, token)) continue;
        normalise(sample, token, packed_dst_ + count * c_);
        if (screens_) screen_.pack_destination(count);
        dst_of_[count++] = int32_t(j);
      }
      if (count == 0) continue;
      if (first_dst < 0) first_dst = dst_of_[0];
      for (int64_t i = begin; i < end;) {
        const int64_t at = i - begin;
        if (end - i > L) {
          sweep<2>(sample, i, at_most(end - i, 2 * L), count, best_ + at, index_ + at);
          i += 2 * L;
        } else {
          sweep<1>(sample, i, end - i, count, best_ + at, index_ + at);
          i += L;
        }
      }
    }
    write(sample, begin, end, first_dst);
  }

 private:
  const T* token(int64_t sample, int64_t n) const {
    return static_cast<const T*>(p_.metric) + sample * p_.stride[0] + n * p_.stride[2];
  }

  // The metric of a token as a contiguous row: where it lies, or, converted and summed over the
  // heads, in `out`. The mean's factor does not change a cosine.
  const S* row(int64_t sample, int64_t n, S* out) const {
    const T* from = token(sample, n);
    if (direct_) return reinterpret_cast<const S*>(from);
    for (int64_t h = 0; h < p_.heads; ++h, from += p_.stride[1]) {
      if (p_.stride[3] != 1) {
        for (int64_t c = 0; c < c_; ++c) {
          S value[1];
          V::load(from + c * p_.stride[3], 1).store(value, 1);
          out[c] = h == 0 ? value[0] : out[c] + value[0];
        }
        continue;
      }
      for (int64_t c = 0; c < c_; c += L) {
        const int n_lanes = int(at_most(c_ - c, L));
        V v = n_lanes == L ? V::load(from + c) : V::load(from + c, n_lanes);
        if (h > 0) v = v + V::load(out + c, n_lanes);
        v.store(out + c, n_lanes);
      }
    }
    return out;
  }

  // out = row / |row|; zeros for zeros, NaN where an element is not finite.
  void normalise(int64_t sample, int64_t n, S* out) const {
    const S* from = row(sample, n, out);
    V sum[4] = {V(S(0)), V(S(0)), V(S(0)), V(S(0))};
    int64_t c = 0;
    for (; c + 4 * L <= c_; c += 4 * L)
      for (int u = 0; u < 4; ++u) {
        const V v = V::load(from + c + u * L);
        sum[u] = fma(v, v, sum[u]);
      }
    for (; c < c_; c += L) {
      const V v = V::load(from + c, int(at_most(c_ - c, L)));
      sum[0] = fma(v, v, sum[0]);
    }
    const S squares = hsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (!(squares >= Range<S>::low && squares <= Range<S>::high)) {
      extreme(from, 1, out, 1);
      return;
    }
    const V inverse(S(1) / root(squares));
    for (c = 0; c + L <= c_; c += L) (V::load(from + c) * inverse).store(out + c);
    if (c < c_) (V::load(from + c, int(c_ - c)) * inverse).store(out + c, int(c_ - c));
  }

  static float root(float v) { return __builtin_sqrtf(v); }
  static double root(double v) { return __builtin_sqrt(v); }

  // The same for rows whose squares leave the range of S: divided by the largest element first.
  void extreme(const S* from, int64_t from_step, S* out, int64_t step) const {
    S most = 0;
    bool finite = true;
    for (int64_t c = 0; c < c_; ++c) {
      const S v = __builtin_fabs(from[c * from_step]);
      finite &= v <= __builtin_huge_val() && v != S(__builtin_huge_val());
      if (v > most) most = v;
    }
    S squares = 0;
    for (int64_t c = 0; c < c_ && most > 0; ++c)
      squares += (from[c * from_step] / most) * (from[c * from_step] / most);
    const S length = root(squares);
    for (int64_t c = 0; c < c_; ++c)
      out[c * step] = !finite    ? S(__builtin_nan(""))
                      : most > 0 ? from[c * from_step] / most / length
                                 : S(0);
  }

  // Packs `count` sources from i on as [channel][R * L], and gives 1 / norm of each lane.
  template <int R>
  void pack(int64_t sample, int64_t i, int64_t count, V (&inverse)[R]) {
    constexpr int kWidth = R * L;
    V squares[R][2];
    for (int r = 0; r < R; ++r) {
      const S* rows[L];
      for (int lane = 0; lane < L; ++lane) {
        // Lanes past the end repeat the last source.
        const int64_t source = i + at_most(r * L + lane, count - 1);
        int64_t n = p_.part.src(sample, source);
        if (n < 0 || n >= p_.part.num_tokens) n = 0;  // its result is dropped
        rows[lane] = row(sample, n, staged_ + lane * c_);
      }
      squares[r][0] = squares[r][1] = V(S(0));
      for (int64_t c = 0; c < c_; c += L) {
        const int lanes = int(at_most(c_ - c, L));
        V square[L];
        for (int lane = 0; lane < L; ++lane)
          square[lane] = lanes == L ? V::load(rows[lane] + c) : V::load(rows[lane] + c, lanes);
        transpose(square);
        for (int k = 0; k < L; ++k) {  // beyond the last channel: zeros
          squares[r][k & 1] = fma(square[k], square[k], squares[r][k & 1]);
          if (k < lanes) square[k].store(packed_src_ + (c + k) * kWidth + r * L);
        }
      }
      S sum[L];
      (squares[r][0] + squares[r][1]).store(sum);
      for (int lane = 0; lane < L; ++lane) {
        if (sum[lane] >= Range<S>::low && sum[lane] <= Range<S>::high) {
          sum[lane] = S(1) / root(sum[lane]);
        } else {
          S* column = packed_src_ + r * L + lane;
          extreme(column, kWidth, column, kWidth);
          sum[lane] = S(1);
        }
      }
      inverse[r] = V::load(sum);
    }
  }

  // Sources [i, i + count) against the packed destinations.
  template <int R>
  void sweep(int64_t sample, int64_t i, int64_t count, int64_t destinations, S* best_at,
             S* index_at) {
    V inverse[R], best[R], index[R];
    pack<R>(sample, i, count, inverse);
    // Scores of earlier blocks are cosines already; within a block 1 / |a| is left for the end.
    for (int r = 0; r < R; ++r) {
      best[r] = V(-S(__builtin_inff()));
      index[r] = V(S(-1));
    }
    if (!screened<R>(count, destinations, inverse, best, index))
      each_tile(destinations, [&]<int D>(int64_t j) { tile<R, D>(j, best, index); });
    const V none(S(-1));
    for (int r = 0; r < R && r * L < count; ++r) {
      const V score = best[r] * inverse[r];
      const V old = V::load(best_at + r * L);
      const auto better = old < score;
      const auto matched = none < index[r];
      const auto wins = both(better, matched);
      S column[L], kept[L];
      index[r].store(column);
      V::load(index_at + r * L).store(kept);
      S flag[L];
      select(wins, V(S(1)), V(S(0))).store(flag);
      for (int lane = 0; lane < L; ++lane)
        if (flag[lane] != 0) kept[lane] = S(dst_of_[int64_t(column[lane])]);
      V::load(kept).store(index_at + r * L);
      select(wins, score, old).store(best_at + r * L);
    }
  }

  // Calls run<D>(j) for destinations [j, j + D), all of them in ascending order.
  template <typename F>
  void each_tile(int64_t destinations, F run) {
    int64_t j = 0;
    for (; j + kTile <= destinations; j += kTile) {
      run.template operator()<kTile>(j);
      if (ahead_)
        ahead_ = ahead_end_ - ahead_ >= 2 * kAheadBytes * c_ ? ahead_ + kAheadBytes * c_ : nullptr;
    }
    for (; j + 2 <= destinations; j += 2) run.template operator()<2>(j);
    for (; j < destinations; ++j) run.template operator()<1>(j);
  }
  // From where a tile asks for kAheadBytes a channel.
  const char* ahead() const { return ahead_ ? ahead_ : reinterpret_cast<const char*>(packed_src_); }

  // The best of each lane through a screen; false, having changed nothing, where there is none or
  // it holds too little back.
  template <int R>
  bool screened(int64_t count, int64_t destinations, const V (&inverse)[R], V (&best)[R],
                V (&index)[R]) {
    if (!screens_ || destinations < kScreenedDestinations) return false;
    if (pause_ > 0) {
      --pause_;
      return false;
    }
    V most[R], margin[R];
    for (int r = 0; r < R; ++r) most[r] = best[r];
    screen_.template pack_sources<R>(inverse, margin);
    each_tile(destinations, [&]<int D>(int64_t j) {
      screen_.template tile<R, D>(j, ahead(), 2 * kAheadBytes, most);
    });
    const bool good = screen_.template score<R>(destinations, count, most, margin, best, index);
    pause_ = good ? 0 : next_pause_;
    next_pause_ = good ? kLeastPause : int(at_most(2 * next_pause_, kMostPause));
    return good;
  }

  template <int R, int D>
  inline void tile(int64_t j, V (&best)[R], V (&index)[R]) const {
    const S* a = packed_src_;
    const S* b = packed_dst_ + j * c_;
    const char* ahead = this->ahead();
    V sum[D][R];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[d][r] = V(S(0));
    for (int64_t c = 0; c < c_; ++c, a += R * L) {
      // Here, evenly spread: from loops of their own requests cost more than they gain.
      prefetch(ahead + c * kAheadBytes);
      V lanes[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) lanes[r] = V::load(a + r * L);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const V each(b[d * c_ + c]);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[d][r] = fma(lanes[r], each, sum[d][r]);
      }
    }
    // Ascending and strictly greater: the lowest index among equals. NaN is never greater.
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        index[r] = select(best[r] < sum[d][r], V(S(j + d)), index[r]);
        best[r] = max(sum[d][r], best[r]);
      }
  }

  void write(int64_t sample, int64_t begin, int64_t end, int32_t first_dst) const {
    S* scores = static_cast<S*>(p_.scores) + sample * p_.part.num_src;
    int32_t* matches = p_.matches + sample * p_.part.num_src;
    for (int64_t i = begin; i < end; ++i) {
      const bool merges = first_dst >= 0 && p_.part.takes_part(sample, p_.part.src(sample, i));
      const S index = index_[i - begin];
      scores[i] = merges ? best_[i - begin] : -S(__builtin_inff());
      matches[i] = !merges ? -1 : index < 0 ? first_dst : int32_t(index);
    }
  }

  const MatchParams& p_;
  int64_t c_, block_;
  bool direct_, looks_ahead_, screens_;
  int pause_ = 0, next_pause_ = kLeastPause;  // sweeps to come that do without a screen
  Screen<V> screen_;
  const char *ahead_ = nullptr, *ahead_end_ = nullptr;  // nullptr: nothing to ask for
  S *packed_dst_, *packed_src_, *staged_, *best_, *index_;
  int32_t* dst_of_;
};

template <typename T, typename V>
void match_as(const MatchParams& p, bool screen) {
  const int64_t sources = p.part.num_src, threads = num_threads();
  int64_t pieces = p.batch >= 2 * threads ? 1 : ceil_div(2 * threads, at_least(p.batch, 1));
  pieces = at_least(at_most(pieces, sources / kLeastSources), 1);
  constexpr int64_t kStep = 2 * V::size;
  const int64_t piece = at_least(ceil_div(ceil_div(sources, pieces), kStep) * kStep, kStep);
  pieces = at_least(ceil_div(sources, piece), 1);
  const int64_t flops = piece * p.part.num_dst * p.channels;
  const int64_t grain = at_least(kFlopsPerTask / at_least(flops, 1), 1);
  parallel_for(0, p.batch * pieces, grain, [&](int64_t begin, int64_t end) {
    Matcher<T, V> matcher(p, screen);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % pieces * piece;
      if ((task + 1) % pieces == 0 && task + 1 < end) matcher.look_ahead((task + 1) / pieces);
      matcher.run(task / pieces, first, at_most(first + piece, sources));
    }
  });
}

}  // namespace

void match(const MatchParams& p, bool screen) {
  switch (p.dtype) {
    case DType::f64: return match_as<double, VecF64>(p, false);
    case DType::f16: return match_as<f16, VecF32>(p, screen);
    case DType::bf16: return match_as<bf16, VecF32>(p, screen);
    default: return match_as<float, VecF32>(p, screen);
  }
}

}  // namespace fastops::merge::cpu::FASTOPS_ISA
