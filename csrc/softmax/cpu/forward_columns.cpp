// Softmax alone, of rows that are neighbours in memory (dim != -1): no mask, bias, lse or per-row
// operand.
//
// Budget per 16 fp32 elements (Zen 4, 13 clocks of memory time): one exp (7 clocks), a maximum, a
// scaling, two stores. Lanes are rows, 32 of them a block, so that 16-bit values fill a line too.
// One loop over the 16 elements of a group does three things to a block, so that reading,
// arithmetic and writing overlap: it exponentiates them against the maximum of the group into
// scratch, finds the maximum of the group that comes next, and scales and stores the group of the
// tile before, whose place in scratch it takes. At a tile's end the groups' sums and maxima become
// one factor each. Groups follow each other without a break from tile to tile.
//
// -inf needs no branch: exp2 of -inf - max is 0. A NaN, or +inf - +inf, reaches the sum and from
// there the whole row.
#include "cpu/exp.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/kernels.h"
#include "softmax/cpu/rows.h"

namespace fastops::softmax::cpu::FASTOPS_ISA {
namespace {

using V = fastops::cpu::VecF32;

constexpr int kGroup = 16;                 // elements handled together
constexpr int kLanes = int(kColumnBlock);  // rows handled together
constexpr int kVectors = kLanes / V::size;
constexpr int64_t kUnit = int64_t{kGroup} * kLanes;  // scratch of one group of one block

enum class Write { none, through, past };  // the caches

// Rows side by side: blocks of lanes of which the last may overlap the one before it.
template <typename T>
struct Tile {
  const T* x;
  T* out;
  int64_t width;

  int64_t lane(int64_t block) const {
    const int64_t last = width - kLanes;
    return block * kLanes < last ? block * kLanes : last;
  }
};

// Which rows form which tile: the innermost row dim, cut evenly at whole blocks.
class Tiling {
 public:
  explicit Tiling(const Shape& shape) : span_(shape.row_size[shape.row_dims - 1]) {
    spans_ = shape.rows / span_;
    whole_ = span_ / kLanes;
    const int64_t groups = (shape.n + kGroup - 1) / kGroup;
    int64_t most = kColumnScratch / (groups * kUnit * int64_t(sizeof(float)));
    most = most < 1 ? 1 : most < kMostColumnBlocks ? most : kMostColumnBlocks;
    // Enough tiles for every thread.
    const int64_t wanted = 4 * fastops::cpu::num_threads();
    while (most > 1 && spans_ * ((whole_ + most - 1) / most) < wanted) most /= 2;
    per_span_ = (whole_ + most - 1) / most;
    blocks_ = (whole_ + per_span_ - 1) / per_span_ + (span_ % kLanes ? 1 : 0);
  }

  int64_t tiles() const { return spans_ * per_span_; }
  int64_t blocks() const { return blocks_; }  // of every tile
  int64_t first_row(int64_t tile) const { return tile / per_span_ * span_ + at(tile % per_span_); }
  int64_t width(int64_t tile) const {
    const int64_t i = tile % per_span_;
    return (i + 1 < per_span_ ? at(i + 1) : span_) - at(i);
  }

 private:
  int64_t at(int64_t i) const { return whole_ * i / per_span_ * kLanes; }

  int64_t span_, spans_, whole_, per_span_, blocks_;
};

template <typename T, int kDegree>
class Columns {
 public:
  explicit Columns(const ForwardParams& p)
      : p_(p),
        n_(p.shape.n),
        groups_((n_ + kGroup - 1) / kGroup),
        tiling_(p.shape),
        blocks_(tiling_.blocks()),
        ahead_(kAheadUnits / blocks_ > 1 ? kAheadUnits / blocks_ : 1),
        base2_(float(p.scale * fastops::cpu::kLog2e)),
        x_stride_(p.x.reduce_stride[0]),
        out_stride_(p.out.reduce_stride[0]),
        write_(p.out.data != p.x.data && whole_lines() &&
                       use_streaming(p.shape.rows * n_ * int64_t(sizeof(T)))
                   ? Write::past
                   : Write::through) {}

  void run() const {
    const int64_t grain = 1 + kElementsPerTask / (n_ * blocks_ * kLanes);
    fastops::cpu::parallel_for(0, tiling_.tiles(), grain, [&](int64_t begin, int64_t end) {
      if (write_ == Write::past) work<Write::past>(begin, end);
      else work<Write::through>(begin, end);
      fastops::cpu::store_fence();
    });
  }

 private:
  static constexpr int64_t kAheadUnits = 8;

  // A thread's. Of each group and block the exponentials, what they are relative to (later their
  // factor), and their sum; of each block the maximum of the group that comes next.
  struct Scratch {
    float *exps, *tops, *sums, *next;
  };

  bool whole_lines() const {
    const Shape& s = p_.shape;
    uintptr_t bits = reinterpret_cast<uintptr_t>(p_.out.data) |
                     uintptr_t(out_stride_ * int64_t(sizeof(T))) |
                     uintptr_t(s.row_size[s.row_dims - 1] % kLanes);
    for (int d = 0; d + 1 < s.row_dims; ++d)
      bits |= uintptr_t(p_.out.row_stride[d] * int64_t(sizeof(T)));
    return bits % 64 == 0;
  }

  Tile<T> tile(int64_t index) const {
    const RowCursor row(p_.shape, tiling_.first_row(index));
    return {static_cast<const T*>(p_.x.data) + row.offset(p_.x.row_stride),
            static_cast<T*>(p_.out.data) + row.offset(p_.out.row_stride), tiling_.width(index)};
  }

  int count(int64_t g) const {
    const int64_t left = n_ - g * kGroup;
    return int(left < kGroup ? left : kGroup);
  }

  template <Write kWrite>
  void work(int64_t begin, int64_t end) const {
    const int64_t units = groups_ * blocks_;
    auto* memory = static_cast<float*>(fastops::cpu::thread_scratch(
        sizeof(float) * size_t(units * (kUnit + 2 * kLanes) + blocks_ * kLanes)));
    Scratch s{memory, memory + units * kUnit, nullptr, nullptr};
    s.sums = s.tops + units * kLanes;
    s.next = s.sums + units * kLanes;

    Tile<T> now = tile(begin), before = now;
    for (int64_t b = 0; b < blocks_; ++b) {
      V most[kVectors];
      for (V& m : most) m = V(-__builtin_inff());
      for (int i = 0; i < count(0); ++i) raise(most, now.x + now.lane(b) + i * x_stride_);
      for (int v = 0; v < kVectors; ++v) most[v].store(s.next + b * kLanes + v * V::size);
    }
    for (int64_t index = begin; index < end; ++index) {
      const Tile<T> next = index + 1 < end ? tile(index + 1) : now;
      if (index == begin) sweep<Write::none>(now, next, before, s);
      else sweep<kWrite>(now, next, before, s);
      close(s);
      before = now;
      now = next;
    }
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t b = 0; b < blocks_; ++b) {
        V factor[kVectors];
        load_all(factor, s.tops + (g * blocks_ + b) * kLanes);
        for (int i = 0; i < count(g); ++i)
          write<kWrite>(s.exps + (g * blocks_ + b) * kUnit + i * kLanes, factor,
                        before.out + before.lane(b) + (g * kGroup + i) * out_stride_);
      }
  }

  // Where group g of `now` is, counted on into `next`.
  const T* source(const Tile<T>& now, const Tile<T>& next, int64_t g, int64_t b) const {
    const Tile<T>& t = g < groups_ ? now : next;
    return t.x + t.lane(b) + (g < groups_ ? g : g - groups_) * kGroup * x_stride_;
  }

  template <Write kWrite>
  void sweep(const Tile<T>& now, const Tile<T>& next, const Tile<T>& before,
             const Scratch& s) const {
    for (int64_t g = 0; g < groups_; ++g)
      for (int64_t b = 0; b < blocks_; ++b) {
        const int64_t unit = g * blocks_ + b;
        step<kWrite>(source(now, next, g, b), source(now, next, g + 1, b),
                     source(now, next, g + 1 + ahead_, b), count(g),
                     count(g + 1 < groups_ ? g + 1 : 0), s.exps + unit * kUnit,
                     s.tops + unit * kLanes, s.sums + unit * kLanes, s.next + b * kLanes,
                     before.out + before.lane(b) + g * kGroup * out_stride_);
      }
  }

  // One group of one block; `next` and `fetch` are groups that come later.
  template <Write kWrite>
  void step(const T* x, const T* next, const T* fetch, int count, int next_count, float* exps,
            float* tops, float* sums, float* maxima, T* out) const {
    const V low(-__builtin_inff()), zero(0.f), base2(base2_);
    V factor[kVectors], minus[kVectors], sum[kVectors], most[kVectors];
    if constexpr (kWrite != Write::none) load_all(factor, tops);
    for (int v = 0; v < kVectors; ++v) {
      const V top = V::load(maxima + v * V::size);
      top.store(tops + v * V::size);
      minus[v] = select(top == low, zero, top);
      sum[v] = zero;
      most[v] = low;
    }
    for (int i = 0; i < count; ++i) {
      request(fetch + i * x_stride_);
      if constexpr (kWrite != Write::none) write<kWrite>(exps, factor, out + i * out_stride_);
      for (int v = 0; v < kVectors; ++v) {
        const V e = fastops::cpu::exp2<kDegree>((V::load(x + v * V::size) - minus[v]) * base2);
        sum[v] = sum[v] + e;
        e.store(exps + v * V::size);
      }
      raise(most, next);
      x += x_stride_;
      exps += kLanes;
      if (i + 1 < next_count) next += x_stride_;
    }
    for (int i = count; i < next_count; ++i, next += x_stride_) {
      request(fetch + i * x_stride_);
      raise(most, next);
    }
    for (int v = 0; v < kVectors; ++v) {
      sum[v].store(sums + v * V::size);
      most[v].store(maxima + v * V::size);
    }
  }

  // From the groups' maxima and sums their factors.
  void close(const Scratch& s) const {
    const V low(-__builtin_inff()), zero(0.f), base2(base2_);
    const V nothing(p_.zero_masked_rows ? 0.f : __builtin_nanf(""));
    const int64_t width = blocks_ * kLanes;
    for (int64_t c = 0; c < width; c += V::size) {
      V top = low;
      for (int64_t g = 0; g < groups_; ++g) top = max(V::load(s.tops + g * width + c), top);
      const V minus = select(top == low, zero, top);
      V total = zero, error = zero;  // of rounding, carried along
      for (int64_t g = 0; g < groups_; ++g) {
        const V factor = fastops::cpu::exp2((V::load(s.tops + g * width + c) - minus) * base2);
        factor.store(s.tops + g * width + c);
        const V term = fma(V::load(s.sums + g * width + c), factor, zero - error);
        const V sum = total + term;
        error = (sum - total) - term;
        total = sum;
      }
      const V inverse = select(total == zero, nothing, V(1.f) / total);
      for (int64_t g = 0; g < groups_; ++g)
        (V::load(s.tops + g * width + c) * inverse).store(s.tops + g * width + c);
    }
  }

  static void load_all(V* to, const float* from) {
    for (int v = 0; v < kVectors; ++v) to[v] = V::load(from + v * V::size);
  }
  static void raise(V* most, const T* x) {
    for (int v = 0; v < kVectors; ++v) most[v] = max(V::load(x + v * V::size), most[v]);
  }
  static void request(const T* x) {
    for (int i = 0; i < kLanes; i += 64 / int(sizeof(T))) fastops::cpu::prefetch(x + i);
  }
  template <Write kWrite>
  static void write(const float* exps, const V* factor, T* out) {
    for (int v = 0; v < kVectors; ++v) {
      const V result = V::load(exps + v * V::size) * factor[v];
      if constexpr (kWrite == Write::past) result.stream(out + v * V::size);
      else result.store(out + v * V::size);
    }
  }

  const ForwardParams& p_;
  const int64_t n_, groups_;
  const Tiling tiling_;
  const int64_t blocks_, ahead_;
  const float base2_;
  const int64_t x_stride_, out_stride_;
  const Write write_;
};

}  // namespace

void forward_columns(const ForwardParams& p) {
  // Half results hide the error of a shorter polynomial.
  switch (p.x.dtype) {
    case DType::bf16: return Columns<fastops::cpu::bf16, 4>(p).run();
    case DType::f16: return Columns<fastops::cpu::f16, 4>(p).run();
    default: return Columns<float, 5>(p).run();
  }
}

}  // namespace fastops::softmax::cpu::FASTOPS_ISA
