// Forward of rows side by side: dim != -1, and every layout the row kernels do not serve.
//
// Budget per element (fp32): read x, write out, 8 bytes; one exp. A group of 16 elements raises
// the running maximum once; what is kept of an element is exp(score - maximum so far), and the
// last pass multiplies by exp(that maximum - the final one) / sum. A tile too long for L2 computes
// its scores again instead. The last pass of a tile is interleaved with the first of the next one,
// whose groups take the place of those that are done, so that reads and writes of memory overlap.
#include "cpu/exp.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/tiles.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

constexpr int64_t kKeptBytes = 1 << 20;  // scratch of a tile: the L2 of a Zen 4

template <typename V>
class ForwardTiles {
 public:
  using S = typename V::Scalar;

  explicit ForwardTiles(const ForwardParams& p)
      : p_(p),
        n_(p.shape.n),
        groups_((n_ + kGroup - 1) / kGroup),
        tiling_(p.shape, lanes_for(n_)),
        lanes_(tiling_.lanes()),
        memory_(p.shape),
        kept_(p.kind != Kind::logsumexp && n_ * lanes_ * int64_t(sizeof(S)) <= kKeptBytes),
        scaled_(p.scale != 1.0 || p.row_scale),
        stream_(p.out && p.out.data != p.x.data &&
                use_streaming(p.shape.rows * n_ * int64_t(size_of(p.out.dtype)))) {}

  void run() const {
    const int64_t grain = 1 + kElementsPerTask / (n_ * lanes_);
    fastops::cpu::parallel_for(0, tiling_.tiles(), grain, [&](int64_t begin, int64_t end) {
      work(begin, end);
      fastops::cpu::store_fence();
    });
  }

 private:
  struct Tile {
    TileArgs<V> args;
    LaneOperand x, out;
    int64_t lse[kMaxLanes];
    // Per lane the maximum, the sum and its rounding error; in the last pass what it subtracts
    // (top) and multiplies by or subtracts (sum).
    alignas(64) S top[kMaxLanes];
    alignas(64) S sum[kMaxLanes];
    alignas(64) S error[kMaxLanes];
    S* scores;  // [n or kGroup][lanes]
    S* tops;    // [groups][lanes], the maximum each group was taken under
  };

  // As wide as lines and pages like it, as long as the whole tile is kept.
  static int lanes_for(int64_t n) {
    int lanes = kMaxLanes;
    while (lanes > kLeastLanes && n * lanes * int64_t(sizeof(S)) > kKeptBytes) lanes /= 2;
    return n * lanes * int64_t(sizeof(S)) > kKeptBytes ? kMaxLanes : lanes;
  }

  void work(int64_t begin, int64_t end) const {
    const int64_t scores = (kept_ ? n_ : kGroup) * lanes_, tops = kept_ ? groups_ * lanes_ : 0;
    S* scratch = static_cast<S*>(fastops::cpu::thread_scratch(sizeof(S) * size_t(scores + tops)));
    Tile tiles[2];
    for (Tile& t : tiles) {
      t.scores = scratch;
      t.tops = scratch + scores;
    }
    Tile* ready = nullptr;
    for (int64_t index = begin; index < end; ++index) {
      Tile& t = tiles[index & 1];
      start(t, index);
      for (int64_t g = 0; g < groups_; ++g) {
        if (ready) finish(*ready, group_at(g, n_));
        accumulate(t, group_at(g, n_));
      }
      close(t);
      if (kept_) ready = &t;
      else if (p_.out)
        for (int64_t g = groups_ - 1; g >= 0; --g) recompute(t, group_at(g, n_));
    }
    for (int64_t g = 0; ready && g < groups_; ++g) finish(*ready, group_at(g, n_));
  }

  void start(Tile& t, int64_t index) const {
    RowCursor row(p_.shape, tiling_.first_row(index));
    t.args.width = tiling_.width(index);
    for (int c = 0; c < t.args.width; ++c, row.next()) {
      t.args.place(p_, memory_, row, c);
      memory_.place(t.x, p_.x, row, c);
      memory_.place(t.out, p_.out, row, c);
      if (p_.lse) t.lse[c] = row.offset(p_.lse.row_stride);
    }
    for (int c = 0; c < lanes_; c += V::size) {
      V(-S(__builtin_inf())).store(t.top + c);
      V(S(0)).store(t.sum + c);
      V(S(0)).store(t.error + c);
    }
  }

  // Scores of a group, -inf where an element does not take part.
  void load(const Tile& t, const Group& g, S* scores) const {
    memory_.load(p_.x, t.x, t.args.width, g, scores, lanes_);
    alignas(64) S bias[kGroup * kMaxLanes];
    alignas(64) uint8_t valid[kGroup * kMaxLanes];
    const bool masked = t.args.valid(p_, memory_, g, valid);
    if (p_.bias) memory_.load(p_.bias, t.args.bias, t.args.width, g, bias, lanes_);
    if (!masked && !p_.bias && !scaled_) return;
    const V excluded(-S(__builtin_inf()));
    for (int i = 0; i < g.count; ++i)
      for (int c = 0; c < lanes_; c += V::size) {
        V s = V::load(scores + i * lanes_ + c);
        if (scaled_) s = s * V::load(t.args.scale + c);
        if (p_.bias) s = s + V::load(bias + i * lanes_ + c);
        if (masked) s = select(V::load_mask(valid + i * kMaxLanes + c), s, excluded);
        s.store(scores + i * lanes_ + c);
      }
  }

  // Infinite maxima are not subtracted: exp(-inf) is 0 then, and +inf shows in the sum.
  static V subtrahend(V top) {
    const V zero(S(0)), inf{S(__builtin_inf())};
    return select(top == inf, zero, select(top == zero - inf, zero, top));
  }

  // exp(+inf) is NaN in the toolbox; here it must be +inf, so that the sum, and lse, are.
  static V power(V t) { return exp(min(V(sizeof(S) == 4 ? S(200) : S(1000)), t)); }
  static V zero_if_nan(V a) { return select(is_nan(a), V(S(0)), a); }

  void accumulate(Tile& t, const Group& g) const {
    S* scores = t.scores + (kept_ ? g.first * lanes_ : 0);
    load(t, g, scores);
    for (int c = 0; c < lanes_; c += V::size) {
      const V before = V::load(t.top + c);
      V top = before;
      for (int i = 0; i < g.count; ++i) top = max(V::load(scores + i * lanes_ + c), top);
      const V minus = subtrahend(top);
      V sum(S(0));
      if (kept_ && p_.kind == Kind::softmax) {
        for (int i = 0; i < g.count; ++i) {
          const V e = power(V::load(scores + i * lanes_ + c) - minus);
          e.store(scores + i * lanes_ + c);
          sum = sum + e;
        }
        top.store(t.tops + g.index * lanes_ + c);
      } else {
        for (int i = 0; i < g.count; ++i)
          sum = sum + power(V::load(scores + i * lanes_ + c) - minus);
      }
      add(t, c, power(before - minus), sum);
      top.store(t.top + c);
    }
  }

  // sum = sum * factor + more, with the rounding error of the addition carried along.
  static void add(Tile& t, int c, V factor, V more) {
    const V scaled = V::load(t.sum + c) * factor;
    const V term = more - zero_if_nan(V::load(t.error + c) * factor);
    const V sum = scaled + term;
    sum.store(t.sum + c);
    zero_if_nan((sum - scaled) - term).store(t.error + c);
  }

  // From the whole sum: lse, and the last pass's top and sum.
  void close(Tile& t) const {
    const S inf = S(__builtin_inf()), nan = S(__builtin_nan(""));
    const bool softmax = p_.kind == Kind::softmax;
    for (int c = 0; c < t.args.width; ++c) {
      const S top = t.top[c], sum = t.sum[c];
      // A NaN score passes the maximum by, but not the sum.
      const bool empty = top == -inf && sum == S(0), infinite = top == inf || top == -inf;
      const S log_sum = p_.lse || !softmax ? S(__builtin_log(double(sum))) : S(0);
      if (p_.lse)
        static_cast<S*>(p_.lse.data)[t.lse[c]] = empty ? -inf : infinite ? sum : top + log_sum;
      t.top[c] = infinite ? S(0) : top;
      if (infinite) t.sum[c] = empty && p_.zero_masked_rows ? S(0) : nan;
      else t.sum[c] = softmax ? S(1) / sum : log_sum;
    }
  }

  void finish(const Tile& t, const Group& g) const {
    S* scores = t.scores + g.first * lanes_;
    for (int c = 0; c < lanes_; c += V::size) {
      const V top = V::load(t.top + c), sum = V::load(t.sum + c);
      if (p_.kind == Kind::softmax) {
        const V factor = exp(V::load(t.tops + g.index * lanes_ + c) - top) * sum;
        for (int i = 0; i < g.count; ++i) {
          S* at = scores + i * lanes_ + c;
          (V::load(at) * factor).store(at);
        }
      } else {
        for (int i = 0; i < g.count; ++i) {
          S* at = scores + i * lanes_ + c;
          ((V::load(at) - top) - sum).store(at);
        }
      }
    }
    memory_.store(p_.out, t.out, t.args.width, g, scores, lanes_, stream_);
  }

  void recompute(const Tile& t, const Group& g) const {
    load(t, g, t.scores);
    for (int c = 0; c < lanes_; c += V::size) {
      const V top = V::load(t.top + c), sum = V::load(t.sum + c);
      for (int i = 0; i < g.count; ++i) {
        S* at = t.scores + i * lanes_ + c;
        const V s = V::load(at) - top;
        (p_.kind == Kind::softmax ? exp(s) * sum : s - sum).store(at);
      }
    }
    memory_.store(p_.out, t.out, t.args.width, g, t.scores, lanes_, stream_);
  }

  const ForwardParams& p_;
  const int64_t n_, groups_;
  const Tiling tiling_;
  const int lanes_;
  const TileMemory<V> memory_;
  const bool kept_;  // a tile's values stay in scratch between the passes
  const bool scaled_;
  const bool stream_;
};

}  // namespace

void forward_tiles(const ForwardParams& p) {
  if (accumulator(p.x.dtype, p.out ? p.out.dtype : p.x.dtype) == DType::f64)
    ForwardTiles<fastops::cpu::VecF64>(p).run();
  else ForwardTiles<fastops::cpu::VecF32>(p).run();
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
