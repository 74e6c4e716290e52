// The general row kernel: mask, bias, lengths, causal, scales, any pair of dtypes, any values.
//
// Per chunk of 1024 elements: scores to scratch in the accumulation type (excluded ones -inf) with
// their maximum, then exp against the running maximum in place. At the row's end one factor per
// chunk, and the result is written from scratch. Nothing is read beyond a row's valid length.
// Rows longer than the scratch are scored twice instead. Subtracting the maximum before scaling
// to base 2 keeps scores near the end of the float range right, where faster kernels give up.
#pragma once

#include "cpu/exp.h"
#include "cpu/scratch.h"
#include "softmax/cpu/heuristics.h"
#include "softmax/cpu/rows.h"

namespace fastops::softmax::cpu {
namespace {

using namespace fastops::cpu;

// Calls f with a value of the C++ type that stores t.
template <typename F>
inline auto with_float(DType t, F f) {
  switch (t) {
    case DType::f64: return f(double{});
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

inline const void* advance(const Operand& o, int64_t elements) {
  return static_cast<const char*>(o.data) + elements * int64_t(size_of(o.dtype));
}

inline constexpr int64_t kSumBlock = 128;

// exp of a difference to the maximum.
inline VecF32 exp_below(VecF32 d) { return exp2(d * VecF32(kLog2eF)); }
inline VecF64 exp_below(VecF64 d) { return exp(d); }
inline float exp_below(float d) { return __builtin_expf(d); }
inline double exp_below(double d) { return __builtin_exp(d); }

template <typename V>
constexpr typename V::Scalar infinity() {
  return typename V::Scalar(__builtin_inff());
}

// n strided elements to the accumulation type.
template <typename V, typename T>
inline void gather(const T* p, int64_t stride, int64_t n, typename V::Scalar* to) {
  if (stride == 1) {
    int64_t j = 0;
    for (; j + V::size <= n; j += V::size) V::load(p + j).store(to + j);
    V::load(p + j, int(n - j)).store(to + j, int(n - j));
    return;
  }
  typename V::Scalar lane[V::size];
  for (int64_t j = 0; j < n; ++j) {
    V::load(p + j * stride, 1).store(lane);
    to[j] = lane[0];
  }
}

// One row's operands, and its scores chunk by chunk.
template <typename V>
class RowScores {
 public:
  using S = typename V::Scalar;

  RowScores(const ForwardParams& p, const RowCursor& cursor)
      : p_(p), length_(cursor.length(p)), scale_(S(p.scale)) {
    x_ = advance(p.x, cursor.offset(p.x.row_stride));
    if (p.row_scale) scale_ *= cursor.at<S>(p.row_scale);
    if (p.mask)
      mask_ = static_cast<const uint8_t*>(advance(p.mask, cursor.offset(p.mask.row_stride)));
    if (p.bias) bias_ = advance(p.bias, cursor.offset(p.bias.row_stride));
    // A mask that broadcasts along the row takes all or nothing.
    if (mask_ && stride(p.mask) == 0) {
      if (!*mask_) length_ = 0;
      mask_ = nullptr;
    }
  }

  int64_t length() const { return length_; }

  // Writes the scores of [begin, begin + n), n <= kChunk, to `to`, padded with -inf to whole
  // vectors; returns the maximum of each lane.
  V operator()(int64_t begin, int64_t n, S* to) const {
    alignas(64) S bias_buffer[kChunk];
    alignas(64) uint8_t mask_buffer[kChunk];
    const uint8_t* mask = nullptr;
    if (mask_) {
      mask = mask_ + begin * stride(p_.mask);
      if (stride(p_.mask) != 1) {
        for (int64_t j = 0; j < n; ++j) mask_buffer[j] = mask[j * stride(p_.mask)];
        mask = mask_buffer;
      }
    }
    if (bias_) {
      with_float(p_.bias.dtype, [&](auto t) {
        const auto* b = static_cast<const decltype(t)*>(bias_) + begin * stride(p_.bias);
        gather<V>(b, stride(p_.bias), n, bias_buffer);
      });
    }
    return with_float(p_.x.dtype, [&](auto t) {
      const auto* x = static_cast<const decltype(t)*>(x_) + begin;
      if (mask && bias_) return score<true, true>(x, mask, bias_buffer, n, to);
      if (mask) return score<true, false>(x, mask, bias_buffer, n, to);
      if (bias_) return score<false, true>(x, mask, bias_buffer, n, to);
      return score<false, false>(x, mask, bias_buffer, n, to);
    });
  }

 private:
  static int64_t stride(const Operand& o) { return o.reduce_stride[0]; }

  template <bool kMask, bool kBias, typename T>
  V score(const T* x, const uint8_t* mask, const S* bias, int64_t n, S* to) const {
    const V low(-infinity<V>()), scale(scale_);
    V most = low;
    auto one = [&](int64_t j, V v, auto... lanes) {
      V s = v * scale;
      if constexpr (kBias) s = fma(v, scale, V::load(bias + j, lanes...));
      if constexpr (kMask) s = select(V::load_mask(mask + j, lanes...), s, low);
      if constexpr (sizeof...(lanes) > 0) s = select(V::first(lanes...), s, low);
      s.store(to + j);
      most = max(s, most);
    };
    int64_t j = 0;
    for (; j + V::size <= n; j += V::size) one(j, V::load(x + j));
    if (j < n) one(j, V::load(x + j, int(n - j)), int(n - j));
    return most;
  }

  const ForwardParams& p_;
  const void* x_;
  const uint8_t* mask_ = nullptr;
  const void* bias_ = nullptr;
  int64_t length_;
  S scale_;
};

// What a finished row needs to be written: out = exp(s - shift) * factor or (s - shift) - log_sum.
template <typename V>
struct RowResult {
  using S = typename V::Scalar;
  S shift;   // maximum score
  S factor;  // 1 / sum
  S log_sum;
  S excluded;  // what an element that takes no part becomes
};

// An infinite maximum makes the sum NaN (inf - inf), yet the lse is +inf unless a score is NaN.
template <typename V>
bool any_nan(const RowScores<V>& scores, typename V::Scalar* buffer) {
  for (int64_t begin = 0; begin < scores.length(); begin += kChunk) {
    const int64_t left = scores.length() - begin, count = left < kChunk ? left : kChunk;
    scores(begin, count, buffer);
    for (int64_t j = 0; j < count; j += V::size)
      if (any(is_nan(V::load(buffer + j)))) return true;
  }
  return false;
}

template <typename V>
RowResult<V> finish_row(const ForwardParams& p, const RowCursor& cursor, const RowScores<V>& scores,
                        typename V::Scalar max, double sum) {
  using S = typename V::Scalar;
  const bool empty = sum == 0;  // not so where a NaN hides behind a maximum of -inf
  const bool wants_log = p.lse || p.kind == Kind::log_softmax;
  const double log_sum = wants_log && !empty ? __builtin_log(sum) : 0.0;
  if (p.lse) {
    alignas(64) S buffer[kChunk];
    const bool infinite = max == infinity<V>() && !any_nan(scores, buffer);
    cursor.at<S>(p.lse) = infinite ? max : S(double(max) + log_sum);
  }
  RowResult<V> r{max, S(1.0 / sum), S(log_sum), S(0)};
  if (p.kind == Kind::log_softmax) r.excluded = -infinity<V>();
  if (empty && p.zero_masked_rows) {
    r.shift = r.factor = S(0);
  } else if (empty || sum != sum) {
    r.factor = r.log_sum = r.excluded = S(__builtin_nanf(""));
  }
  return r;
}

// Writes n results; `value(j, v)` maps the stored vector. NT stores need aligned lines, so a
// streaming write has a head and a tail of ordinary ones.
template <typename V, typename Out, typename Value>
inline void write(Out* out, const typename V::Scalar* from, int64_t n, bool stream, Value value) {
  constexpr int64_t bytes = V::size * sizeof(Out);
  int64_t j = 0;
  if (stream) {
    const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(out) % bytes / sizeof(Out));
    if (head > 0) {
      const int lanes = int(head < n ? head : n);
      value(V::load(from, lanes)).store(out, lanes);
      j = lanes;
    }
    for (; j + V::size <= n; j += V::size) value(V::load(from + j)).stream(out + j);
  }
  for (; j + V::size <= n; j += V::size) value(V::load(from + j)).store(out + j);
  if (j < n) value(V::load(from + j, int(n - j))).store(out + j, int(n - j));
}

template <typename V, typename Out>
void fill(Out* out, int64_t n, typename V::Scalar value) {
  const V v(value);
  int64_t j = 0;
  for (; j + V::size <= n; j += V::size) v.store(out + j);
  if (j < n) v.store(out + j, int(n - j));
}

// Scratch of one row: scores or exponentials, and the maximum each chunk was taken against.
template <typename V>
struct RowScratch {
  using S = typename V::Scalar;
  S* values;
  S* chunk_max;

  static int64_t value_count(int64_t n) {
    const int64_t kept = n <= kScratchElements ? n : kChunk;
    return (kept + kChunk - 1) / kChunk * kChunk;
  }
  static size_t bytes(int64_t n) {
    return sizeof(S) * size_t(value_count(n) + (n + kChunk - 1) / kChunk);
  }
  RowScratch(void* memory, int64_t n)
      : values(static_cast<S*>(memory)), chunk_max(values + value_count(n)) {}
};

template <typename V>
void score_row(const ForwardParams& p, const RowCursor& cursor, RowScratch<V> scratch,
               bool stream) {
  using S = typename V::Scalar;
  const RowScores<V> scores(p, cursor);
  const int64_t n = scores.length();
  const bool kept = p.shape.n <= kScratchElements, softmax = p.kind == Kind::softmax;

  S max = -infinity<V>();
  double sum = 0;
  for (int64_t begin = 0, c = 0; begin < n; begin += kChunk, ++c) {
    const int64_t count = n - begin < kChunk ? n - begin : kChunk;
    S* values = scratch.values + (kept ? begin : 0);
    const S most = hmax(scores(begin, count, values));
    // The sum so far is relative to the old maximum; exp(-inf - -inf) must not reach it.
    if (most > max) {
      sum *= exp_below(double(max) - double(most));
      max = most;
    }
    scratch.chunk_max[c] = max;
    const V shift(max == -infinity<V>() ? S(0) : max);
    // In blocks: sums of few terms lose few digits, also where a vector has only two lanes.
    V total(S(0));
    for (int64_t block = 0; block < count; block += kSumBlock) {
      const int64_t block_end = block + kSumBlock < count ? block + kSumBlock : count;
      V part(S(0));
      for (int64_t j = block; j < block_end; j += V::size) {
        const V e = exp_below(V::load(values + j) - shift);
        if (softmax && kept) e.store(values + j);
        part = part + e;
      }
      total = total + part;
    }
    sum += double(hsum(total));
  }

  const RowResult<V> r = finish_row<V>(p, cursor, scores, max, sum);
  if (!p.out) return;
  with_float(p.out.dtype, [&](auto t) {
    using Out = decltype(t);
    Out* out =
        static_cast<Out*>(const_cast<void*>(advance(p.out, cursor.offset(p.out.row_stride))));
    const V shift(r.shift), log_sum(r.log_sum), excluded(r.excluded);
    for (int64_t begin = 0, c = 0; begin < n; begin += kChunk, ++c) {
      const int64_t count = n - begin < kChunk ? n - begin : kChunk;
      const S* values = scratch.values + (kept ? begin : 0);
      if (!kept) scores(begin, count, scratch.values);
      if (!softmax) {
        // An excluded score is -inf and would stay so, except where the whole row is NaN.
        write<V>(out + begin, values, count, stream, [=](V s) { return (s - shift) - log_sum; });
      } else if (kept) {
        const S ratio = scratch.chunk_max[c] == max ? S(1) : exp_below(scratch.chunk_max[c] - max);
        const V factor(r.factor * ratio);
        write<V>(out + begin, values, count, stream, [=](V e) { return e * factor; });
      } else {
        const V factor(r.factor);
        write<V>(out + begin, values, count, stream,
                 [=](V s) { return exp_below(s - shift) * factor; });
      }
    }
    fill<V>(out + n, p.shape.n - n, r.excluded);
  });
}

}  // namespace
}  // namespace fastops::softmax::cpu
