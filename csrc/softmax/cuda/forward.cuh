// The forward row operator: what softmax, log_softmax and logsumexp do with the vectors of a row.
// The kernels (rows, stream, split, column) decide where a row is held and who reduces it.
//
// Everything about special rows follows from the sum of exp(s - max), taken with 0 for a maximum
// that is not finite: it is 0 iff no element takes part, +inf iff a score is +inf, NaN iff one is.
#pragma once

#include <type_traits>

#include "cuda/ptx/math.cuh"
#include "cuda/tile/reduce.cuh"
#include "softmax/cuda/row.cuh"

namespace fastops::softmax::cuda {

template <typename T>
using AccOf = std::conditional_t<sizeof(T) == 8, double, float>;

template <typename Acc>
__device__ __forceinline__ Acc exponential(Acc x) {
  if constexpr (sizeof(Acc) == 8) return exp(x);
  else return expf(x);
}
template <typename Acc>
__device__ __forceinline__ Acc logarithm(Acc x) {
  if constexpr (sizeof(Acc) == 8) return log(x);
  else return logf(x);
}

// 1/x for x >= 1; a full division would be a subroutine call with its own registers.
template <typename Acc>
__device__ __forceinline__ Acc reciprocal(Acc x) {
  if constexpr (sizeof(Acc) == 8) {
    return 1.0 / x;
  } else {
    const float r = ptx::rcp(x);
    return fmaf(fmaf(-x, r, 1.0f), r, r);
  }
}

template <typename Acc>
__device__ __forceinline__ Acc infinity() {
  if constexpr (sizeof(Acc) == 8) return __longlong_as_double(0x7ff0000000000000ll);
  else return __int_as_float(0x7f800000);
}
template <typename Acc>
__device__ __forceinline__ Acc not_a_number() {
  return infinity<Acc>() - infinity<Acc>();
}

// The running (max, sum) of a set of scores: sum of exp(s - base(max)).
template <typename Acc>
struct MaxSum {
  Acc max, sum;
};

template <typename Acc>
__device__ __forceinline__ Acc base(Acc max) {
  return max == infinity<Acc>() || max == -infinity<Acc>() ? Acc(0) : max;
}

// What a sum relative to `from` is multiplied by when the maximum becomes `to`.
template <typename Acc>
__device__ __forceinline__ Acc rescale(Acc from, Acc to) {
  return from == to ? Acc(1) : exponential(from - to);
}

template <typename Acc>
__device__ __forceinline__ MaxSum<Acc> warp_reduce_max_sum(MaxSum<Acc> stat, int lanes) {
  const Acc max = fastops::cuda::warp_max(stat.max, lanes);
  return {max, fastops::cuda::warp_sum(stat.sum * rescale(stat.max, max), lanes)};
}

template <typename Acc>
__device__ __forceinline__ MaxSum<Acc> merge_max_sum(MaxSum<Acc> a, MaxSum<Acc> b) {
  const Acc max = fastops::cuda::maximum(a.max, b.max);
  return {max, a.sum * rescale(a.max, max) + b.sum * rescale(b.max, max)};
}

template <typename Acc>
__device__ __forceinline__ Acc log_sum_exp(MaxSum<Acc> stat) {
  return base(stat.max) + logarithm(stat.sum);
}

// How an output follows from its score and the row's statistic:
//   softmax      exp(s - base) * factor
//   log_softmax  (s - base) - factor
template <typename Acc>
struct RowFactor {
  Acc base, factor;
};

template <typename Acc>
__device__ __forceinline__ RowFactor<Acc> row_factor(bool log, bool zero_masked_rows,
                                                     MaxSum<Acc> stat) {
  Acc factor = log ? logarithm(stat.sum) : reciprocal(stat.sum);
  if (stat.sum == infinity<Acc>()) factor = not_a_number<Acc>();
  if (stat.sum == Acc(0)) factor = zero_masked_rows ? Acc(0) : not_a_number<Acc>();
  return {base(stat.max), factor};
}

// A vector of results in the output's own dtype: that of x, or (float only) another.
template <typename In, typename Acc, int kCount>
__device__ __forceinline__ void store_as(DType dtype, void* row, int first, int count, bool aligned,
                                         const Acc (&v)[kCount]) {
  using namespace fastops::cuda;
  if (dtype == Element<In>::kDType) {
    store_vector(static_cast<In*>(row), first, count, aligned, v);
  } else if constexpr (sizeof(In) == 2) {
    store_vector(static_cast<float*>(row), first, count, aligned, v);
  } else if constexpr (sizeof(In) == 4) {
    if (dtype == DType::f16) store_vector(static_cast<Half*>(row), first, count, aligned, v);
    else store_vector(static_cast<BFloat16*>(row), first, count, aligned, v);
  }
}

__device__ __forceinline__ int element_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// Whether vectors of kCount elements of a row that starts `shift` elements into one are aligned.
template <int kCount>
__device__ __forceinline__ bool vectors_aligned(const void* row, DType dtype, int shift) {
  const int bytes = element_bytes(dtype);
  const int width = kCount * bytes < 16 ? kCount * bytes : 16;
  return (reinterpret_cast<uintptr_t>(row) - shift * bytes) % width == 0;
}

// A row of scores, or the part of one from element `begin` on: x in, one result per element out.
template <typename In_, bool kFull>
struct ScoreRow {
  using In = In_;
  using Acc = AccOf<In>;
  static constexpr int kV = kVec<In>;

  const In* x;
  void* out;
  int count;    // elements
  int present;  // elements worth loading: those before `limit`
  int shift;    // of x from 16-byte alignment, in elements
  bool out_aligned;
  DType out_dtype;
  Acc scale;
  uint64_t fill;  // bits whose score is -inf
  RowScores<Acc> scores;

  template <typename Params>
  __device__ __forceinline__ static ScoreRow locate(const Params& p, const Operand& x,
                                                    const Operand& out, int64_t row, int64_t begin,
                                                    int count) {
    const int64_t* const strides[2] = {x.row_stride, out.row_stride};
    int64_t offset[2];
    row_offsets(p.shape, row, strides, offset);
    ScoreRow r;
    r.x = static_cast<const In*>(x.data) + offset[0] + begin;
    r.out_dtype = out.dtype;
    r.out = out.data == nullptr
                ? nullptr
                : static_cast<char*>(out.data) + (offset[1] + begin) * element_bytes(r.out_dtype);
    r.count = r.present = count;
    r.shift = static_cast<int>(reinterpret_cast<uintptr_t>(r.x) % 16 / sizeof(In));
    r.out_aligned = vectors_aligned<kV>(r.out, r.out_dtype, r.shift);
    if constexpr (kFull) {
      r.scores = RowScores<Acc>::locate(p, row, begin, count);
      r.present = r.scores.limit;
      r.scale = r.scores.scale;
      r.fill = 0;
    } else {
      r.scale = static_cast<Acc>(p.scale);
      r.fill = p.scale < 0 ? fastops::cuda::Element<In>::kInfinity
                           : fastops::cuda::kNegativeInfinity<In>;
    }
    return r;
  }

  __device__ __forceinline__ int vectors() const { return (shift + count + kV - 1) / kV; }
  __device__ __forceinline__ const In* input(int) const { return x; }
  __device__ __forceinline__ bool input_aligned(int) const { return true; }
  __device__ __forceinline__ uint64_t absent(int) const { return fill; }

  // The scores of vector v; returns the bits of those that take part.
  __device__ __forceinline__ uint32_t score(int v, const Raw& raw, Acc (&s)[kV]) const {
    if constexpr (!kFull) {
#pragma unroll
      for (int i = 0; i < kV; ++i) s[i] = fastops::cuda::element<In>(raw, i) * scale;
      return ~0u;
    } else {
      const int first = v * kV - shift;
      const uint32_t valid = scores.template valid_bits<kV>(first);
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        s[i] = -infinity<Acc>();
        if (valid >> i & 1)
          s[i] = fastops::cuda::element<In>(raw, i) * scale + scores.bias_of(first + i);
      }
      return valid;
    }
  }

  __device__ __forceinline__ void store(int v, const Acc (&y)[kV]) const {
    store_as<In>(out_dtype, out, v * kV - shift, count, out_aligned, y);
  }
};

template <typename In_, bool kLog_, bool kFull_>
struct Forward {
  using In = In_;
  using Params = ForwardParams;
  using Acc = AccOf<In>;
  using Row = ScoreRow<In, kFull_>;
  using Stat = MaxSum<Acc>;
  using Final = RowFactor<Acc>;
  static constexpr int kV = kVec<In>;
  static constexpr int kInputs = 1;
  static constexpr bool kLog = kLog_, kFull = kFull_, kReduces = true;

  struct Input {
    Raw raw[kInputs];
  };
  struct Held {
    Acc s[kV];
  };

  __device__ __forceinline__ static Row locate(const Params& p, int64_t row, int64_t begin,
                                               int count) {
    return Row::locate(p, p.x, p.out, row, begin, count);
  }

  __device__ __forceinline__ static Stat identity() { return {-infinity<Acc>(), Acc(0)}; }
  __device__ __forceinline__ static Stat warp_reduce(Stat stat, int lanes) {
    return warp_reduce_max_sum(stat, lanes);
  }
  __device__ __forceinline__ static Stat merge(Stat a, Stat b) { return merge_max_sum(a, b); }

  __device__ __forceinline__ static Held hold(const Row& r, int v, const Input& input) {
    Held held;
    r.score(v, input.raw[0], held.s);
    return held;
  }

  // The statistic of all the vectors a thread holds in registers. For softmax the scores become
  // exp(s - base(stat.max)), so that each element costs one exponential.
  template <int kVecs>
  __device__ __forceinline__ static Stat reduce(Held (&held)[kVecs]) {
    Stat stat = identity();
#pragma unroll
    for (int k = 0; k < kVecs; ++k)
#pragma unroll
      for (int i = 0; i < kV; ++i) stat.max = fastops::cuda::maximum(stat.max, held[k].s[i]);
    const Acc from = base(stat.max);
#pragma unroll
    for (int k = 0; k < kVecs; ++k)
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        const Acc e = exponential(held[k].s[i] - from);
        stat.sum += e;
        if (!kLog) held[k].s[i] = e;
      }
    return stat;
  }

  // Adds one vector to a thread's running statistic.
  __device__ __forceinline__ static void accumulate(Stat& stat, const Held& held) {
    Acc max = held.s[0];
#pragma unroll
    for (int i = 1; i < kV; ++i) max = fastops::cuda::maximum(max, held.s[i]);
    if (max > stat.max) {
      stat.sum *= rescale(stat.max, max);
      stat.max = max;
    }
    const Acc from = base(stat.max);
    Acc sum = 0;
#pragma unroll
    for (int i = 0; i < kV; ++i) sum += exponential(held.s[i] - from);
    stat.sum += sum;
  }

  __device__ __forceinline__ static Final finish(const Params& p, int64_t, Stat total) {
    return row_factor(kLog, p.zero_masked_rows, total);
  }

  // After reduce(): the thread's exponentials are relative to its own maximum.
  __device__ __forceinline__ static Final localize(Final final, Stat own, Stat total) {
    if constexpr (!kLog) final.factor *= rescale(own.max, total.max);
    return final;
  }

  __device__ __forceinline__ static void write_reduced(const Row& r, int v, const Held& held,
                                                       const Final& final) {
    if (r.out == nullptr) return;
    Acc y[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i)
      y[i] = kLog ? (held.s[i] - final.base) - final.factor : held.s[i] * final.factor;
    r.store(v, y);
  }

  __device__ __forceinline__ static void write(const Row& r, int v, const Held& held,
                                               const Final& final) {
    if (r.out == nullptr) return;
    Acc y[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      const Acc t = held.s[i] - final.base;
      y[i] = kLog ? t - final.factor : exponential(t) * final.factor;
    }
    r.store(v, y);
  }

  // Once per row, by one thread.
  __device__ __forceinline__ static void write_row(const Params& p, int64_t row, Stat total) {
    if (p.lse.data != nullptr)
      static_cast<Acc*>(p.lse.data)[row_offset(p, row, p.lse.row_stride)] = log_sum_exp(total);
  }
};

}  // namespace fastops::softmax::cuda
