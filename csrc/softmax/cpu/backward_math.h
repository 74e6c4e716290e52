// The arithmetic of the backward kernels on contiguous chunks, for every kind and dtype.
#pragma once

#include <type_traits>

#include "cpu/exp.h"
#include "cpu/pairs.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/rows.h"
#include "softmax/softmax.h"

namespace fastops::softmax::cpu {
namespace {

// n contiguous elements of one row. mask: one byte an element, or null; bias (logsumexp): in the
// accumulation type, or null; ahead: bytes between a prefetch and its use.
struct Chunk {
  const void* y;
  const void* dy;
  void* dx;
  const uint8_t* mask;
  const void* bias;
  int64_t n;
  int64_t ahead;
};

// softmax       dx = y * (dy - shift) * scale             shift = sum(y * dy) - dlse
// log_softmax   dx = (dy - exp(y) * shift) * scale        shift = sum(dy) - dlse
// logsumexp     dx = shift * exp(y * scale + bias - lse) * scale,  shift = dlse
struct Factors {
  double shift;
  double scale;
  double lse;
};

// Rows of plain elements at fixed distances, short enough that two stay in L2.
struct PlainRows {
  const void* y;
  const void* dy;
  void* dx;
  int64_t y_stride, dy_stride, dx_stride;
  int64_t rows, n, ahead;
  double scale;
};

struct BackwardKernels {
  double (*sum)(const Chunk&) = nullptr;  // null for logsumexp
  void (*apply)(const Chunk&, const Factors&) = nullptr;
  void (*stream)(const Chunk&, const Factors&) = nullptr;  // apply past the caches; dx aligned
  void (*row)(const Chunk&, Factors, bool streaming) = nullptr;  // a chunk: its sum, then the rest
  // Null for logsumexp. The second: rows that follow each other, of a vector at least.
  void (*plain)(const PlainRows&, bool streaming) = nullptr;
  void (*flat)(const PlainRows&, bool streaming) = nullptr;
};

// A row's factors before its sum is added to shift.
inline Factors row_factors(const BackwardParams& p, const RowCursor& at) {
  const bool wide = accumulator(p.y.dtype, p.dx.dtype) == DType::f64;
  const auto read = [&](const Operand& o) {
    return wide ? at.at<const double>(o) : double(at.at<const float>(o));
  };
  const double dlse = p.dlse ? read(p.dlse) : 0.0;
  return {p.kind == Kind::logsumexp ? dlse : -dlse,
          p.row_scale ? p.scale * read(p.row_scale) : p.scale, p.lse ? read(p.lse) : 0.0};
}

template <typename Math, typename Y, typename G, typename D>
struct FlatBackward;

template <Kind kind, bool masked, typename Y, typename G, typename D>
struct BackwardMath {
  static constexpr bool wide = sizeof(Y) == 8 || sizeof(D) == 8;
  using V = std::conditional_t<wide, fastops::cpu::VecF64, fastops::cpu::VecF32>;
  using S = typename V::Scalar;

  static constexpr int kUnroll = 4;

  // What is read and written at a time: a cache line of 16-bit elements as two vectors (in the
  // order of pairs.h), else one.
  static constexpr bool paired =
      !masked && sizeof(V) == 64 && sizeof(Y) == 2 && std::is_same_v<Y, G> && std::is_same_v<Y, D>;
  static constexpr int kUnit = paired ? 2 : 1;

  struct Unit {
    V v[kUnit];

    template <typename T>
    static Unit load(const T* p) {
      Unit u;
      if constexpr (paired) Pairs<T>::load(p, u.v[0], u.v[1]);
      else u.v[0] = V::load(p);
      return u;
    }
    template <bool streaming>
    void put(D* p) const {
      if constexpr (paired)
        streaming ? Pairs<D>::stream(p, v[0], v[1]) : Pairs<D>::store(p, v[0], v[1]);
      else if constexpr (streaming) v[0].stream(p);
      else v[0].store(p);
    }

   private:
    template <typename T>
    using Pairs = std::conditional_t<std::is_same_v<T, fastops::cpu::bf16>, fastops::cpu::BF16Pairs,
                                     fastops::cpu::Natural<T>>;
  };

  // Sums of up to a chunk, by lane.
  struct Lanes {
    V sums[kUnroll];

    Lanes() {
      for (V& s : sums) s = V(S(0));
    }
    V total() const { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

    static V add(V sum, V y_j, V dy_j) {
      if constexpr (kind == Kind::softmax) return fma(y_j, dy_j, sum);
      else return sum + dy_j;
    }
    // Those of a chunk. The unused lanes of its last vector load as 0 and add nothing.
    template <bool fetching>
    [[gnu::always_inline]] void add_chunk(const Chunk& c) {
      int64_t j = 0;
      for (; j + kUnroll * V::size <= c.n; j += kUnroll * V::size)
        for (int u = 0; u < kUnroll; u += kUnit) unit<fetching>(c, j + u * V::size, sums + u);
      if (j == c.n) return;
      Lanes all = *this;  // a copy: sums that are indexed would be in memory for the loop too
      all.add_rest(c, j);
      *this = all;
    }

   private:
    // The unit from element j of the chunk on, a vector to each sum.
    template <bool fetching>
    [[gnu::always_inline]] static void unit(const Chunk& c, int64_t j, V* sum) {
      const Y* y = static_cast<const Y*>(c.y) + j;
      const G* dy = static_cast<const G*>(c.dy) + j;
      if constexpr (fetching) fetch(y, dy, c.ahead);
      const Unit dy_j = Unit::load(dy);
      Unit y_j = dy_j;
      if constexpr (kind == Kind::softmax) y_j = Unit::load(y);
      for (int i = 0; i < kUnit; ++i) {
        const V next = add(sum[i], y_j.v[i], dy_j.v[i]);
        sum[i] = masked ? select(V::load_mask(c.mask + j), next, sum[i]) : next;
      }
    }
    [[gnu::noinline]] void add_rest(const Chunk& c, int64_t j) {
      for (int u = 0; j < c.n; j += V::size, ++u) {
        const int n = c.n - j < V::size ? int(c.n - j) : V::size;
        const V y_j = kind == Kind::softmax ? V::load(static_cast<const Y*>(c.y) + j, n) : V(S(0));
        const V next = add(sums[u], y_j, V::load(static_cast<const G*>(c.dy) + j, n));
        sums[u] = masked ? select(V::load_mask(c.mask + j, n), next, sums[u]) : next;
      }
    }
  };

  // What sums, or the sums of the next row, will read.
  static void fetch(const Y* y, const G* dy, int64_t ahead) {
    if constexpr (kind == Kind::softmax) fastops::cpu::prefetch(y + ahead / int64_t(sizeof(Y)));
    fastops::cpu::prefetch(dy + ahead / int64_t(sizeof(G)));
  }

  template <bool fetching>
  [[gnu::always_inline]] static double sum_as(const Chunk& c) {
    Lanes lanes;
    lanes.template add_chunk<fetching>(c);
    return double(hsum(lanes.total()));
  }

  static double sum(const Chunk& c) { return sum_as<true>(c); }

  static V gradient(V y, V dy, V shift, V scale, V lse) {
    if constexpr (kind == Kind::softmax) return y * (dy - shift) * scale;
    else if constexpr (kind == Kind::log_softmax) return fnma(exp(y), shift, dy) * scale;
    else return shift * exp(fma(y, scale, dy) - lse) * scale;
  }

  static Unit gradient(const Unit& y, const Unit& dy, V shift, V scale) {
    Unit d;
    for (int i = 0; i < kUnit; ++i) d.v[i] = gradient(y.v[i], dy.v[i], shift, scale, V(S(0)));
    return d;
  }

  // For logsumexp the bias, in the accumulation type, takes the place of dy.
  using Second = std::conditional_t<kind == Kind::logsumexp, S, G>;

  template <bool streaming>
  static void apply_as(const Chunk& c, const Factors& f) {
    const void* second = kind == Kind::logsumexp ? c.bias : c.dy;
    apply_with<streaming, false>(c, f, static_cast<const Second*>(second));
  }

  template <bool streaming, bool fetching>
  static void apply_with(const Chunk& c, const Factors& f, const Second* dy) {
    const V shift{S(f.shift)}, scale{S(f.scale)}, lse{S(f.lse)}, zero{S(0)};
    const Y* y = static_cast<const Y*>(c.y);
    D* dx = static_cast<D*>(c.dx);
    // A bias may be missing.
    const auto second = [&](int64_t j, auto... n) {
      return kind == Kind::logsumexp && !dy ? zero : V::load(dy + j, n...);
    };
    int64_t j = 0;
    if constexpr (kind != Kind::logsumexp && !masked)
      for (; j + kUnit * V::size <= c.n; j += kUnit * V::size) {
        if constexpr (fetching) fetch(y + j, dy + j, c.ahead);
        gradient(Unit::load(y + j), Unit::load(dy + j), shift, scale)
            .template put<streaming>(dx + j);
      }
    for (; j + V::size <= c.n; j += V::size) {
      V d = gradient(V::load(y + j), second(j), shift, scale, lse);
      if constexpr (masked) d = select(V::load_mask(c.mask + j), d, zero);
      if constexpr (streaming) d.stream(dx + j);
      else d.store(dx + j);
    }
    if (j == c.n) return;
    const int n = int(c.n - j);
    V d = gradient(V::load(y + j, n), second(j, n), shift, scale, lse);
    if constexpr (masked) d = select(V::load_mask(c.mask + j, n), d, zero);
    d.store(dx + j, n);
  }

  static void apply(const Chunk& c, const Factors& f) { apply_as<false>(c, f); }
  static void stream(const Chunk& c, const Factors& f) { apply_as<true>(c, f); }

  static void reduce(const V* lanes, S* sums) {
    if constexpr (wide) {
      for (int i = 0; i < V::size; ++i) sums[i] = hsum(lanes[i]);
    } else {
      transpose_reduce(lanes, [](V a, V b) { return a + b; }).store(sums);
    }
  }

  static void row(const Chunk& c, Factors f, bool streaming) {
    if constexpr (kind != Kind::logsumexp) f.shift += sum(c);
    streaming ? stream(c, f) : apply(c, f);
  }

  static Chunk plain_row(const PlainRows& p, int64_t r) {
    return {static_cast<const Y*>(p.y) + r * p.y_stride,
            static_cast<const G*>(p.dy) + r * p.dy_stride,
            static_cast<D*>(p.dx) + r * p.dx_stride,
            nullptr,
            nullptr,
            p.n,
            p.ahead};
  }

  template <bool streaming, bool fetching>
  static void apply_plain(const Chunk& row, double shift, double scale) {
    apply_with<streaming, fetching>(row, {shift, scale, 0.0}, static_cast<const Second*>(row.dy));
  }

  // The same sums and results as row(), without its overhead: rows that stay in L1, one by one. For
  // as many as a vector has lanes, whose sums one transposition reduced, 64 MB of rows of 64 to
  // 1024 elements took a seventh to a third longer. The next row is asked for while one is written:
  // while it is read itself took a tenth longer at 1024.
  template <bool streaming>
  static void plain_in_l1(const PlainRows& p) {
    for (int64_t r = 0; r < p.rows; ++r) {
      const Chunk row = plain_row(p, r);
      apply_plain<streaming, true>(row, sum_as<false>(row), p.scale);
    }
  }

  // Rows that stay in L2: two from places far apart at a time, summed by chunks in turns, which the
  // hardware reads ahead in both. 64 MB of fp32 rows of 16384 take 7.8 ms, one by one 8.8.
  template <bool streaming>
  static void plain_by_turns(const PlainRows& p) {
    const int64_t half = p.rows / 2;
    for (int64_t r = 0; r < p.rows - half; ++r) {
      const bool two = r < half;
      const Chunk a = plain_row(p, r), b = plain_row(p, two ? p.rows - half + r : r);
      double of_a = 0, of_b = 0;
      for (int64_t j = 0; j < p.n; j += kChunk) {
        of_a += sum_from(a, j);
        if (two) of_b += sum_from(b, j);
      }
      apply_plain<streaming, false>(a, of_a, p.scale);
      if (two) apply_plain<streaming, false>(b, of_b, p.scale);
    }
  }

  static double sum_from(Chunk row, int64_t j) {
    row.y = static_cast<const Y*>(row.y) + j;
    row.dy = static_cast<const G*>(row.dy) + j;
    row.n = row.n - j < kChunk ? row.n - j : kChunk;
    return sum(row);
  }

  // Rows kept in registers from the sum on: 16 bits are widened once.
  template <bool streaming, int kVectors>
  static void held_as(const PlainRows& p) {
    const Y* y = static_cast<const Y*>(p.y);
    const G* dy = static_cast<const G*>(p.dy);
    D* dx = static_cast<D*>(p.dx);
    constexpr int kUnits = kVectors / kUnit, kElements = kUnit * V::size;
    const V scale{S(p.scale)};
    for (int64_t r = 0; r < p.rows; ++r) {
      Unit of_y[kUnits], of_dy[kUnits];
      Lanes lanes;
      for (int k = 0; k < kUnits; ++k) {
        of_y[k] = Unit::load(y + k * kElements);
        of_dy[k] = Unit::load(dy + k * kElements);
        for (int i = 0; i < kUnit; ++i) {
          V& sum = lanes.sums[(k * kUnit + i) % kUnroll];
          sum = Lanes::add(sum, of_y[k].v[i], of_dy[k].v[i]);
        }
      }
      const V shift(hsum(lanes.total()));
      for (int k = 0; k < kUnits; ++k)
        gradient(of_y[k], of_dy[k], shift, scale).template put<streaming>(dx + k * kElements);
      y += p.y_stride;
      dy += p.dy_stride;
      dx += p.dx_stride;
    }
  }

  template <bool streaming>
  static void plain_by_length(const PlainRows& p) {
    if (p.n == 4 * V::size) return held_as<streaming, 4>(p);
    if constexpr (sizeof(V) == 64)  // with 32 registers
      if (p.n == 8 * V::size) return held_as<streaming, 8>(p);
    if (in_l1_backward(p.n, sizeof(Y) + sizeof(G))) plain_in_l1<streaming>(p);
    else plain_by_turns<streaming>(p);
  }

  static void plain(const PlainRows& p, bool streaming) {
    streaming ? plain_by_length<true>(p) : plain_by_length<false>(p);
  }

  static constexpr BackwardKernels table() {
    BackwardKernels k;
    if constexpr (kind != Kind::logsumexp) {
      k.sum = sum;
      if constexpr (!masked) {
        k.plain = plain;
        k.flat = FlatBackward<BackwardMath, Y, G, D>::run;
      }
    }
    k.apply = apply;
    k.stream = stream;
    k.row = row;
    return k;
  }
};

template <Kind kind, bool masked>
inline BackwardKernels kernels_of(DType y, DType dy, DType dx) {
  using fastops::cpu::bf16;
  using fastops::cpu::f16;
  if (y == dy && dy == dx) {
    switch (y) {
      case DType::f32: return BackwardMath<kind, masked, float, float, float>::table();
      case DType::f64: return BackwardMath<kind, masked, double, double, double>::table();
      case DType::f16: return BackwardMath<kind, masked, f16, f16, f16>::table();
      default: return BackwardMath<kind, masked, bf16, bf16, bf16>::table();
    }
  }
  if (y == DType::f32 && dy == DType::f32) {  // a forward with dtype=torch.float32 on half inputs
    if (dx == DType::f16) return BackwardMath<kind, masked, float, float, f16>::table();
    if (dx == DType::bf16) return BackwardMath<kind, masked, float, float, bf16>::table();
  }
  return {};
}

// All null where this combination of dtypes has no kernel.
inline BackwardKernels backward_kernels(Kind kind, bool masked, DType y, DType dy, DType dx) {
  switch (kind) {
    case Kind::softmax:
      return masked ? kernels_of<Kind::softmax, true>(y, dy, dx)
                    : kernels_of<Kind::softmax, false>(y, dy, dx);
    case Kind::log_softmax:
      return masked ? kernels_of<Kind::log_softmax, true>(y, dy, dx)
                    : kernels_of<Kind::log_softmax, false>(y, dy, dx);
    case Kind::logsumexp: break;
  }
  return masked ? kernels_of<Kind::logsumexp, true>(y, dy, dx)
                : kernels_of<Kind::logsumexp, false>(y, dy, dx);
}

}  // namespace
}  // namespace fastops::softmax::cpu
