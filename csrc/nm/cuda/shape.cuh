// What every kernel of the family asks about a weight or an activation, in device code.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile/vector.cuh"
#include "nm/nm.h"

namespace fastops::nm::cuda {

using fastops::cuda::BFloat16;
using fastops::cuda::Half;
using fastops::cuda::launch;
using fastops::cuda::to_float;

// A weight in plain numbers, worked out on the host.
struct Shape {
  int n, m, bits;
  int64_t out, in, groups, kept, index_bytes;
};
inline Shape shape_of(const Weight& w) {
  return {w.pattern.n, w.pattern.m, index_bits(w.pattern.m), w.out, w.in,
          w.groups(),  w.kept(),    w.index_row_bytes()};
}

// Stored index q of a row of indices. Whatever the bytes say, it is below m.
__device__ __forceinline__ int stored_index(const Shape& s, const uint8_t* row, int64_t q) {
  const int64_t at = q * s.bits;
  const int index = row[at >> 3] >> (at & 7) & ((1 << s.bits) - 1);
  return min(index, s.m - 1);
}

// Where row `row` of an activation starts, in elements.
__device__ __forceinline__ int64_t row_offset(const Rows& rows, int64_t row) {
  if (rows.dims <= 1) return row * rows.stride[0];
  int64_t sum = 0;
#pragma unroll 1
  for (int d = rows.dims - 1; d > 0; --d) {
    sum += row % rows.size[d] * rows.stride[d];
    row /= rows.size[d];
  }
  return sum + row * rows.stride[0];
}

__device__ __forceinline__ void from_float(float v, float& to) { to = v; }
__device__ __forceinline__ void from_float(float v, Half& to) { to = __float2half_rn(v); }
__device__ __forceinline__ void from_float(float v, BFloat16& to) { to = __float2bfloat16_rn(v); }

__device__ __forceinline__ float activate(Activation activation, float v) {
  switch (activation) {
    case Activation::relu: return v < 0 ? 0.f : v;  // NaN stays NaN
    case Activation::gelu: return 0.5f * v * (1.f + erff(v * 0.70710678f));
    case Activation::silu: return v / (1.f + expf(-v));
    default: return v;
  }
}

// Bias, activation and rounding of one sum.
template <typename T>
__device__ __forceinline__ void store_output(const MatmulParams& p, int64_t outputs, int64_t row,
                                             int64_t output, float sum) {
  if (p.bias) sum += to_float(static_cast<const T*>(p.bias)[output]);
  from_float(activate(p.activation, sum), static_cast<T*>(p.y)[row * outputs + output]);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid of one-dimensional blocks; kernels step by the whole grid.
inline constexpr int kThreads = 256;
inline dim3 grid_of(int64_t threads) {
  const int64_t blocks = ceil_div(threads, kThreads), most = int64_t{1} << 20;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}
__device__ __forceinline__ int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

// Calls f with a null pointer to the element type.
template <typename F>
void with_type(DType t, F f) {
  switch (t) {
    case DType::f16: return f(static_cast<Half*>(nullptr));
    case DType::bf16: return f(static_cast<BFloat16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}

}  // namespace fastops::nm::cuda
