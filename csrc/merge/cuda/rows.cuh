// Merge, its backward pass and unmerge on CUDA: a warp per row, members in ascending order, sums in
// fp32 (fp64 for fp64), no atomics. A row moves in 16-byte vectors where every row of both tensors
// is aligned, element by element otherwise.
#pragma once

#include "cuda/runtime.h"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vector.cuh"
#include "merge/merge.h"

namespace fastops::merge::cuda {

using fastops::cuda::kAllLanes;
using fastops::cuda::kWarp;

inline constexpr int kRowThreads = 256;
inline constexpr int kRowWarps = kRowThreads / kWarp;

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void narrow(float* p, float v) { *p = v; }
__device__ __forceinline__ void narrow(double* p, double v) { *p = v; }
__device__ __forceinline__ void narrow(__half* p, float v) {
  *reinterpret_cast<unsigned short*>(p) = __half_as_ushort(__float2half_rn(v));
}
__device__ __forceinline__ void narrow(__nv_bfloat16* p, float v) {
  *reinterpret_cast<unsigned short*>(p) = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}

template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = unsigned short;
};
template <>
struct BitsOf<4> {
  using type = unsigned;
};
template <>
struct BitsOf<8> {
  using type = unsigned long long;
};

// A row of a tensor: kVector elements at a time, and the bits of each where nothing is computed.
template <typename T, bool kVector>
struct Row {
  static constexpr int kWidth = kVector ? 16 / int(sizeof(T)) : 1;
  using Acc = typename Accumulator<T>::type;
  T* at;
  int64_t step;

  __device__ __forceinline__ Row(const Rows& rows, int64_t sample, int64_t middle, int64_t row)
      : at(static_cast<T*>(rows.data) + sample * rows.stride[0] + middle * rows.stride[1] +
           row * rows.stride[2]),
        step(rows.stride[3]) {}

  __device__ __forceinline__ void load(int64_t c, Acc (&v)[kWidth]) const {
    if constexpr (kVector) {
      const uint4 raw = ptx::ld_global_128(at + c);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] = fastops::cuda::element<T>(raw, i);
    } else {
      v[0] = widen(at[c * step]);
    }
  }
  __device__ __forceinline__ void store(int64_t c, const Acc (&v)[kWidth]) const {
    if constexpr (kVector) ptx::st_global_128(at + c, fastops::cuda::pack<T>(v));
    else narrow(at + c * step, v[0]);
  }
  __device__ __forceinline__ void copy(const Row& from, int64_t c) const {
    if constexpr (kVector) {
      ptx::st_global_128(at + c, ptx::ld_global_128(from.at + c));
    } else {
      using Bits = typename BitsOf<sizeof(T)>::type;
      *reinterpret_cast<Bits*>(at + c * step) =
          *reinterpret_cast<const Bits*>(from.at + c * from.step);
    }
  }
  __device__ __forceinline__ void zero(int64_t c) const {
    Acc v[kWidth] = {};
    store(c, v);
  }
};

// body(channel): this lane's share of a row.
template <int kWidth, typename Body>
__device__ __forceinline__ void for_channels(int64_t channels, const Body& body) {
#pragma unroll 1
  for (int64_t c = int64_t(threadIdx.x % kWarp) * kWidth; c < channels; c += kWarp * kWidth)
    body(c);
}

// The tokens of a row; whatever of the plan is out of bounds is left out.
struct Members {
  const int32_t* perm;
  int64_t begin, end, num_tokens;

  __device__ __forceinline__ Members(const PlanView& plan, int64_t sample, int64_t row)
      : perm(plan.perm + sample * plan.num_tokens), num_tokens(plan.num_tokens) {
    const int32_t* offsets = plan.offsets + sample * (plan.num_out + 1) + row;
    begin = min(max(int64_t(offsets[0]), int64_t(0)), num_tokens);
    end = min(max(int64_t(offsets[1]), begin), num_tokens);
  }
  template <typename Body>
  __device__ __forceinline__ void each(const Body& body) const {
#pragma unroll 1
    for (int64_t m = begin; m < end; ++m) {
      const int64_t i = perm[m];
      if (i >= 0 && i < num_tokens) body(i);
    }
  }
  __device__ __forceinline__ int64_t count() const {
    int64_t n = 0;
    each([&](int64_t) { ++n; });
    return n;
  }
  __device__ __forceinline__ int64_t first() const {
    int64_t found = -1;
    each([&](int64_t i) { found = found < 0 ? i : found; });
    return found;
  }
};

template <typename S>
__device__ __forceinline__ S scalar_at(const void* data, DType dtype, int64_t i) {
  return dtype == DType::f64 ? S(static_cast<const double*>(data)[i])
                             : S(static_cast<const float*>(data)[i]);
}
__device__ __forceinline__ void set_scalar(void* data, DType dtype, int64_t i, double value) {
  if (dtype == DType::f64) static_cast<double*>(data)[i] = value;
  else static_cast<float*>(data)[i] = float(value);
}

template <typename Acc>
__device__ __forceinline__ Acc sum_lanes(Acc v) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// A warp's place among blocks x warps.
__device__ __forceinline__ int64_t warp_index() {
  return int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
}

// The sum of sizes (of ones) of a row, in the dtype of sizes.
__device__ __forceinline__ double total_size(const void* size, DType dtype, int64_t base,
                                             const Members& members) {
  if (!size) return double(members.count());
  if (dtype == DType::f64) {
    double sum = 0;
    members.each([&](int64_t i) { sum += scalar_at<double>(size, dtype, base + i); });
    return sum;
  }
  float sum = 0;
  members.each([&](int64_t i) { sum += scalar_at<float>(size, dtype, base + i); });
  return sum;
}

template <typename Acc>
__device__ __forceinline__ Acc longer(Acc length, Acc longest) {
  return length > longest || length != length ? length : longest;
}

// One row of one tensor.
template <typename T, bool kVector>
__device__ __forceinline__ void merge_row(const MergeParams& p, const Rows& xs, const Rows& ys,
                                          int64_t sample, int64_t middle, int64_t o,
                                          const Members& members, double row_size) {
  using R = Row<T, kVector>;
  using Acc = typename R::Acc;
  constexpr int kWidth = R::kWidth;
  const R y(ys, sample, middle, o);
  const int64_t count = members.count(), channels = xs.channels;
  const auto x = [&](int64_t i) { return R(xs, sample, middle, i); };
  if (count == 0) return for_channels<kWidth>(channels, [&](int64_t c) { y.zero(c); });
  if (count == 1) {
    const R only = x(members.first());
    return for_channels<kWidth>(channels, [&](int64_t c) { y.copy(only, c); });
  }
  if (p.mode == Mode::max) {
    return for_channels<kWidth>(channels, [&](int64_t c) {
      Acc most[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) most[k] = -Acc(__int_as_float(0x7f800000));
      members.each([&](int64_t i) {
        Acc v[kWidth];
        x(i).load(c, v);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) most[k] = v[k] > most[k] || v[k] != v[k] ? v[k] : most[k];
      });
      y.store(c, most);
    });
  }
  const bool weighted = p.size && p.mode != Mode::sum;
  const Acc total = p.mode == Mode::sum || row_size == 0 ? Acc(1) : Acc(row_size);
  const int64_t base = sample * p.plan.num_tokens;
  const auto mean = [&](int64_t c, Acc(&sum)[kWidth]) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] = 0;
    members.each([&](int64_t i) {
      Acc v[kWidth];
      x(i).load(c, v);
      const Acc w = weighted ? scalar_at<Acc>(p.size, p.size_dtype, base + i) : Acc(1);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += w * v[k];
    });
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] /= total;  // of ones it makes ones
  };
  Acc scale = 1;
  if (p.mode == Mode::mlerp) {
    Acc longest = 0, squares = 0;
    members.each([&](int64_t i) {
      Acc own = 0;
      for_channels<kWidth>(channels, [&](int64_t c) {
        Acc v[kWidth];
        x(i).load(c, v);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) own += v[k] * v[k];
      });
      longest = longer(Acc(sqrt(sum_lanes(own))), longest);
    });
    for_channels<kWidth>(channels, [&](int64_t c) {
      Acc m[kWidth];
      mean(c, m);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) squares += m[k] * m[k];
    });
    squares = sum_lanes(squares);
    scale = squares > 0 || squares != squares ? longest / Acc(sqrt(squares)) : Acc(0);
  }
  for_channels<kWidth>(channels, [&](int64_t c) {
    Acc m[kWidth];
    mean(c, m);
    if (p.mode == Mode::mlerp)
#pragma unroll
      for (int k = 0; k < kWidth; ++k) m[k] *= scale;
    y.store(c, m);
  });
}

}  // namespace fastops::merge::cuda
