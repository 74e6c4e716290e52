// Backward of rows side by side: dim != -1, and every layout the row kernels do not serve.
//
// Budget per element (fp32): read y and dy, write dx, 12 bytes. A tile's inputs are read once into
// scratch, in the accumulation type, while its sums are formed; the last pass works from there. A
// tile too long for L2 is read again instead. The last pass of a tile is interleaved with the
// first of the next one, so that reads and writes of memory overlap.
#include "cpu/exp.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/tiles.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

constexpr int64_t kKeptBytes = 1 << 20;  // scratch of a tile, y and dy: the L2 of a Zen 4

template <typename V>
class BackwardTiles {
 public:
  using S = typename V::Scalar;

  explicit BackwardTiles(const BackwardParams& p)
      : p_(p),
        n_(p.shape.n),
        groups_((n_ + kGroup - 1) / kGroup),
        sums_(p.kind != Kind::logsumexp),
        tiling_(p.shape, sums_ ? lanes_for(n_) : kMaxLanes),
        lanes_(tiling_.lanes()),
        memory_(p.shape),
        kept_(sums_ && tile_bytes(n_, lanes_) <= kKeptBytes),
        stream_(p.dx.data != p.dy.data && p.dx.data != p.y.data &&
                use_streaming(p.shape.rows * n_ * int64_t(size_of(p.dx.dtype)))) {}

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
    LaneOperand y, dy, dx;
    // Per lane the sum and its rounding error; in the last pass sum - dlse (dlse for logsumexp).
    alignas(64) S sum[kMaxLanes];
    alignas(64) S error[kMaxLanes];
    alignas(64) S dlse[kMaxLanes];
    alignas(64) S lse[kMaxLanes];
    alignas(64) S top[kMaxLanes];  // the largest y, where rows may be empty
    S* values;                     // [groups or 1][y, dy][kGroup][lanes]
  };

  static int64_t tile_bytes(int64_t n, int lanes) { return 2 * n * lanes * int64_t(sizeof(S)); }

  static int lanes_for(int64_t n) {
    int lanes = kMaxLanes;
    while (lanes > kLeastLanes && tile_bytes(n, lanes) > kKeptBytes) lanes /= 2;
    return tile_bytes(n, lanes) > kKeptBytes ? kMaxLanes : lanes;
  }

  bool finds_empty() const { return p_.kind == Kind::log_softmax && p_.zero_masked_rows; }

  void work(int64_t begin, int64_t end) const {
    const int64_t values = 2 * (kept_ ? groups_ : 1) * kGroup * lanes_;
    S* scratch = static_cast<S*>(fastops::cpu::thread_scratch(sizeof(S) * size_t(values)));
    Tile tiles[2];
    for (Tile& t : tiles) t.values = scratch;
    Tile* ready = nullptr;
    for (int64_t index = begin; index < end; ++index) {
      Tile& t = tiles[index & 1];
      start(t, index);
      for (int64_t g = 0; sums_ && g < groups_; ++g) {
        if (ready) apply(*ready, group_at(g, n_));
        accumulate(t, group_at(g, n_));
      }
      close(t);
      if (kept_) ready = &t;
      else
        for (int64_t g = groups_ - 1; g >= 0; --g) apply(t, group_at(g, n_));
    }
    for (int64_t g = 0; ready && g < groups_; ++g) apply(*ready, group_at(g, n_));
  }

  void start(Tile& t, int64_t index) const {
    RowCursor row(p_.shape, tiling_.first_row(index));
    t.args.width = tiling_.width(index);
    for (int c = 0; c < t.args.width; ++c, row.next()) {
      t.args.place(p_, memory_, row, c);
      memory_.place(t.y, p_.y, row, c);
      memory_.place(t.dy, p_.dy, row, c);
      memory_.place(t.dx, p_.dx, row, c);
      t.dlse[c] = p_.dlse ? row.at<const S>(p_.dlse) : S(0);
      t.lse[c] = p_.lse ? row.at<const S>(p_.lse) : S(0);
    }
    for (int c = 0; c < lanes_; c += V::size) {
      V(S(0)).store(t.sum + c);
      V(S(0)).store(t.error + c);
      V(-S(__builtin_inf())).store(t.top + c);
    }
  }

  S* y_values(const Tile& t, const Group& g) const {
    return t.values + (kept_ ? 2 * g.index * kGroup * lanes_ : 0);
  }
  S* dy_values(const Tile& t, const Group& g) const { return y_values(t, g) + kGroup * lanes_; }

  // y, and dy (logsumexp: the bias), of a group.
  void load(const Tile& t, const Group& g) const {
    memory_.load(p_.y, t.y, t.args.width, g, y_values(t, g), lanes_);
    if (p_.dy) memory_.load(p_.dy, t.dy, t.args.width, g, dy_values(t, g), lanes_);
    if (p_.bias) memory_.load(p_.bias, t.args.bias, t.args.width, g, dy_values(t, g), lanes_);
  }

  void accumulate(Tile& t, const Group& g) const {
    load(t, g);
    alignas(64) uint8_t valid[kGroup * kMaxLanes];
    const bool masked = t.args.valid(p_, memory_, g, valid);
    const S *ys = y_values(t, g), *dys = dy_values(t, g);
    for (int c = 0; c < lanes_; c += V::size) {
      V sum(S(0)), top = V::load(t.top + c);
      for (int i = 0; i < g.count; ++i) {
        const V y = V::load(ys + i * lanes_ + c), dy = V::load(dys + i * lanes_ + c);
        const V next = p_.kind == Kind::softmax ? fma(y, dy, sum) : sum + dy;
        // NaN counts as large: its row is not empty.
        const V most = select(is_nan(y), V(S(0)), max(y, top));
        if (masked) {
          const auto takes_part = V::load_mask(valid + i * kMaxLanes + c);
          sum = select(takes_part, next, sum);
          top = select(takes_part, most, top);
        } else {
          sum = next;
          top = most;
        }
      }
      top.store(t.top + c);
      add(t, c, sum);
    }
  }

  // sum += more, with the rounding error of the addition carried along.
  static void add(Tile& t, int c, V more) {
    const V before = V::load(t.sum + c), term = more - V::load(t.error + c);
    const V sum = before + term;
    const V error = (sum - before) - term;
    sum.store(t.sum + c);
    select(is_nan(error), V(S(0)), error).store(t.error + c);
  }

  void close(Tile& t) const {
    for (int c = 0; c < t.args.width; ++c) {
      t.sum[c] = sums_ ? t.sum[c] - t.dlse[c] : t.dlse[c];
      if (finds_empty() && t.top[c] == -S(__builtin_inf())) {
        t.args.length[c] = 0;
        t.args.cut = true;
      }
    }
  }

  void apply(const Tile& t, const Group& g) const {
    if (!kept_) load(t, g);
    alignas(64) uint8_t valid[kGroup * kMaxLanes];
    const bool masked = t.args.valid(p_, memory_, g, valid);
    S *ys = y_values(t, g), *dys = dy_values(t, g);
    const V zero(S(0));
    for (int c = 0; c < lanes_; c += V::size) {
      const V sum = V::load(t.sum + c), scale = V::load(t.args.scale + c), lse = V::load(t.lse + c);
      for (int i = 0; i < g.count; ++i) {
        S* at = ys + i * lanes_ + c;
        const V y = V::load(at), dy = p_.dy || p_.bias ? V::load(dys + i * lanes_ + c) : zero;
        V d;
        if (p_.kind == Kind::softmax) d = y * (dy - sum) * scale;
        else if (p_.kind == Kind::log_softmax) d = fnma(exp(y), sum, dy) * scale;
        else d = sum * exp(fma(y, scale, dy) - lse) * scale;
        if (masked) d = select(V::load_mask(valid + i * kMaxLanes + c), d, zero);
        d.store(at);
      }
    }
    memory_.store(p_.dx, t.dx, t.args.width, g, ys, lanes_, stream_);
  }

  const BackwardParams& p_;
  const int64_t n_, groups_;
  const bool sums_;
  const Tiling tiling_;
  const int lanes_;
  const TileMemory<V> memory_;
  const bool kept_;  // a tile's inputs stay in scratch between the passes
  const bool stream_;
};

}  // namespace

void backward_tiles(const BackwardParams& p) {
  if (accumulator(p.y.dtype, p.dx.dtype) == DType::f64)
    BackwardTiles<fastops::cpu::VecF64>(p).run();
  else BackwardTiles<fastops::cpu::VecF32>(p).run();
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
