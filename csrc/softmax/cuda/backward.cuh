// The backward row operators. Three tensor moves: y and dy are read once, dx written; the product
// y * dy exists only in registers, in the accumulation type.
#pragma once

#include "softmax/cuda/forward.cuh"

namespace fastops::softmax::cuda {

// softmax and log_softmax: ds = y * (dy - c) and ds = dy - exp(y) * c, with c = sum - dlse.
template <typename In_, bool kLog_, bool kFull_>
struct Backward {
  using In = In_;
  using Params = BackwardParams;
  using Acc = AccOf<In>;
  static constexpr int kV = kVec<In>;
  static constexpr int kInputs = 2;  // y, dy
  static constexpr bool kLog = kLog_, kFull = kFull_, kReduces = true;

  // live: 1 iff some y of the row is not -inf (log_softmax: else the row was masked out).
  struct Stat {
    Acc sum, live;
  };
  struct Final {
    Acc c, scale;
    bool masked_out;
  };
  struct Row {
    const In *y, *dy;
    void* dx;
    int count, present, shift;
    bool dy_aligned, dx_aligned;
    DType dx_dtype;
    RowScores<Acc> scores;

    __device__ __forceinline__ int vectors() const { return (shift + count + kV - 1) / kV; }
    __device__ __forceinline__ const In* input(int i) const { return i == 0 ? y : dy; }
    __device__ __forceinline__ bool input_aligned(int i) const { return i == 0 || dy_aligned; }
    // An absent element adds nothing: y = 0 or log y = -inf, and dy = 0.
    __device__ __forceinline__ uint64_t absent(int i) const {
      return kLog && i == 0 ? fastops::cuda::kNegativeInfinity<In> : 0;
    }
  };
  struct Input {
    Raw raw[kInputs];
  };
  struct Held {
    Raw y, dy;
    uint32_t valid;
  };

  __device__ __forceinline__ static Row locate(const Params& p, int64_t row, int64_t begin,
                                               int count) {
    const int64_t* const strides[3] = {p.y.row_stride, p.dy.row_stride, p.dx.row_stride};
    int64_t offset[3];
    row_offsets(p.shape, row, strides, offset);
    Row r;
    r.y = static_cast<const In*>(p.y.data) + offset[0] + begin;
    r.dy = static_cast<const In*>(p.dy.data) + offset[1] + begin;
    r.dx_dtype = p.dx.dtype;
    r.dx = static_cast<char*>(p.dx.data) + (offset[2] + begin) * element_bytes(r.dx_dtype);
    r.count = r.present = count;
    r.shift = static_cast<int>(reinterpret_cast<uintptr_t>(r.y) % 16 / sizeof(In));
    r.dy_aligned = vectors_aligned<kV>(r.dy, fastops::cuda::Element<In>::kDType, r.shift);
    r.dx_aligned = vectors_aligned<kV>(r.dx, r.dx_dtype, r.shift);
    if constexpr (kFull) {
      r.scores = RowScores<Acc>::locate(p, row, begin, count);
      r.present = r.scores.limit;
    }
    return r;
  }

  __device__ __forceinline__ static Stat identity() { return {Acc(0), Acc(0)}; }
  __device__ __forceinline__ static Stat warp_reduce(Stat stat, int lanes) {
    stat.sum = fastops::cuda::warp_sum(stat.sum, lanes);
    if constexpr (kLog) stat.live = fastops::cuda::warp_max(stat.live, lanes);
    return stat;
  }
  __device__ __forceinline__ static Stat merge(Stat a, Stat b) {
    return {a.sum + b.sum, fastops::cuda::maximum(a.live, b.live)};
  }

  __device__ __forceinline__ static Held hold(const Row& r, int v, const Input& input) {
    Held held{input.raw[0], input.raw[1], ~0u};
    if constexpr (kFull) held.valid = r.scores.template valid_bits<kV>(v * kV - r.shift);
    return held;
  }

  __device__ __forceinline__ static void accumulate(Stat& stat, const Held& held) {
    Acc sum = 0;
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      if (kFull && !(held.valid >> i & 1)) continue;
      const Acc y = fastops::cuda::element<In>(held.y, i);
      const Acc dy = fastops::cuda::element<In>(held.dy, i);
      sum += kLog ? dy : y * dy;
      if (kLog && !(y == -infinity<Acc>())) stat.live = Acc(1);
    }
    stat.sum += sum;
  }

  template <int kVecs>
  __device__ __forceinline__ static Stat reduce(Held (&held)[kVecs]) {
    Stat stat = identity();
#pragma unroll
    for (int k = 0; k < kVecs; ++k) accumulate(stat, held[k]);
    return stat;
  }

  __device__ __forceinline__ static Final finish(const Params& p, int64_t row, Stat total) {
    Final f{total.sum, static_cast<Acc>(p.scale),
            kLog && p.zero_masked_rows && total.live == Acc(0)};
    if (p.dlse.data != nullptr)
      f.c -= static_cast<const Acc*>(p.dlse.data)[row_offset(p, row, p.dlse.row_stride)];
    if (p.row_scale.data != nullptr)
      f.scale *=
          static_cast<const Acc*>(p.row_scale.data)[row_offset(p, row, p.row_scale.row_stride)];
    return f;
  }

  __device__ __forceinline__ static Final localize(Final final, Stat, Stat) { return final; }

  __device__ __forceinline__ static void write(const Row& r, int v, const Held& held,
                                               const Final& final) {
    Acc dx[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i) {
      const Acc y = fastops::cuda::element<In>(held.y, i);
      const Acc dy = fastops::cuda::element<In>(held.dy, i);
      const Acc ds = kLog ? dy - exponential(y) * final.c : y * (dy - final.c);
      const bool excluded = (kLog && final.masked_out) || (kFull && !(held.valid >> i & 1));
      dx[i] = excluded ? Acc(0) : ds * final.scale;
    }
    store_as<In>(r.dx_dtype, r.dx, v * kV - r.shift, r.count, r.dx_aligned, dx);
  }

  __device__ __forceinline__ static void write_reduced(const Row& r, int v, const Held& held,
                                                       const Final& final) {
    write(r, v, held, final);
  }

  __device__ __forceinline__ static void write_row(const Params&, int64_t, Stat) {}
};

// logsumexp: ds = dlse * exp(s - lse); lse is known, so nothing is reduced.
template <typename In_, bool kFull_>
struct LseBackward {
  using In = In_;
  using Params = BackwardParams;
  using Acc = AccOf<In>;
  using Row = ScoreRow<In, kFull_>;
  static constexpr int kV = kVec<In>;
  static constexpr int kInputs = 1;  // x
  static constexpr bool kFull = kFull_, kReduces = false;

  struct Stat {};
  struct Final {
    Acc lse, factor;
  };
  struct Input {
    Raw raw[kInputs];
  };
  struct Held {
    Acc s[kV];
    uint32_t valid;
  };

  __device__ __forceinline__ static Row locate(const Params& p, int64_t row, int64_t begin,
                                               int count) {
    return Row::locate(p, p.y, p.dx, row, begin, count);
  }

  __device__ __forceinline__ static Stat identity() { return {}; }
  __device__ __forceinline__ static Stat warp_reduce(Stat stat, int) { return stat; }

  __device__ __forceinline__ static Held hold(const Row& r, int v, const Input& input) {
    Held held;
    held.valid = r.score(v, input.raw[0], held.s);
    return held;
  }

  template <int kVecs>
  __device__ __forceinline__ static Stat reduce(Held (&)[kVecs]) {
    return {};
  }

  __device__ __forceinline__ static Final finish(const Params& p, int64_t row, Stat) {
    const int64_t* const strides[3] = {p.lse.row_stride, p.dlse.row_stride, p.row_scale.row_stride};
    int64_t offset[3];
    row_offsets(p.shape, row, strides, offset);
    Final f;
    f.lse = static_cast<const Acc*>(p.lse.data)[offset[0]];
    f.factor = static_cast<const Acc*>(p.dlse.data)[offset[1]] * static_cast<Acc>(p.scale);
    if (p.row_scale.data != nullptr)
      f.factor *= static_cast<const Acc*>(p.row_scale.data)[offset[2]];
    return f;
  }

  __device__ __forceinline__ static Final localize(Final final, Stat, Stat) { return final; }

  __device__ __forceinline__ static void write(const Row& r, int v, const Held& held,
                                               const Final& final) {
    Acc dx[kV];
#pragma unroll
    for (int i = 0; i < kV; ++i)
      dx[i] = held.valid >> i & 1 ? exponential(held.s[i] - final.lse) * final.factor : Acc(0);
    r.store(v, dx);
  }

  __device__ __forceinline__ static void write_reduced(const Row& r, int v, const Held& held,
                                                       const Final& final) {
    write(r, v, held, final);
  }

  __device__ __forceinline__ static void write_row(const Params&, int64_t, Stat) {}
};

}  // namespace fastops::softmax::cuda
