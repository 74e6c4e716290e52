// Where a row lies: its coordinates turned into the offset of each operand, and the part of its
// elements that takes part.
#pragma once

#include "cuda/tile/vector.cuh"
#include "softmax/softmax.h"

namespace fastops::softmax::cuda {

using fastops::cuda::kVec;
using fastops::cuda::Raw;

// Quotient and remainder; in 32 bits where both fit, which is five times cheaper.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b, int64_t& rest) {
  if (((a | b) >> 32) == 0) {
    const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    rest = static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b);
    return q;
  }
  const int64_t q = a / b;
  rest = a - q * b;
  return q;
}

// Element offset of a row in each of the operands whose row strides are given.
template <int kOperands>
__device__ __forceinline__ void row_offsets(const Shape& shape, int64_t row,
                                            const int64_t* const (&strides)[kOperands],
                                            int64_t (&offset)[kOperands]) {
#pragma unroll
  for (int k = 0; k < kOperands; ++k) offset[k] = 0;
#pragma unroll 1
  for (int d = shape.row_dims - 1; d >= 0; --d) {
    int64_t at = row;
    if (d > 0) row = divide(row, shape.row_size[d], at);
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offset[k] += at * strides[k][d];
  }
}

template <typename Params>
__device__ __forceinline__ int64_t row_offset(const Params& p, int64_t row,
                                              const int64_t* strides) {
  const int64_t* const one[1] = {strides};
  int64_t offset[1];
  row_offsets(p.shape, row, one, offset);
  return offset[0];
}

// Any element of a floating operand, in the accumulation type. Halves travel as their bits.
template <typename Acc>
__device__ __forceinline__ Acc load_any(DType dtype, const void* data, int64_t i) {
  if (dtype == DType::f64) return static_cast<Acc>(static_cast<const double*>(data)[i]);
  if (dtype == DType::f32) return static_cast<const float*>(data)[i];
  const unsigned short bits = static_cast<const unsigned short*>(data)[i];
  return dtype == DType::f16 ? __half2float(__ushort_as_half(bits))
                             : __bfloat162float(__ushort_as_bfloat16(bits));
}

template <typename Acc>
__device__ __forceinline__ void store_any(DType dtype, void* data, int64_t i, Acc v) {
  if (dtype == DType::f64) {
    static_cast<double*>(data)[i] = v;
  } else if (dtype == DType::f32) {
    static_cast<float*>(data)[i] = static_cast<float>(v);
  } else {
    const float f = static_cast<float>(v);
    static_cast<unsigned short*>(data)[i] = dtype == DType::f16
                                                ? __half_as_ushort(__float2half_rn(f))
                                                : __bfloat16_as_ushort(__float2bfloat16_rn(f));
  }
}

// Elements [limit, n) of a row do not take part: lengths and causality.
template <typename Params>
__device__ __forceinline__ int64_t valid_length(const Params& p, int64_t row) {
  int64_t limit = p.shape.n;
  if (p.lengths.data != nullptr) {
    const int64_t i = row_offset(p, row, p.lengths.row_stride);
    const int64_t length = p.lengths.dtype == DType::i32
                               ? static_cast<const int32_t*>(p.lengths.data)[i]
                               : static_cast<const int64_t*>(p.lengths.data)[i];
    limit = min(limit, length);
  }
  if (p.causal) limit = min(limit, row_offset(p, row, p.query_stride) + p.causal_offset + 1);
  return limit < 0 ? 0 : limit;
}

// What the "full" kernels know of a row beyond its data: scale, bias, and who takes part. `begin`
// is the row element where the segment at hand starts; positions below count from there.
template <typename Acc>
struct RowScores {
  Acc scale;
  int limit;
  const uint8_t* mask;
  int64_t mask_stride;
  DType bias_dtype;
  const void* bias;
  int64_t bias_at, bias_stride;

  template <typename Params>
  __device__ __forceinline__ static RowScores locate(const Params& p, int64_t row, int64_t begin,
                                                     int count) {
    RowScores s;
    const int64_t* const strides[3] = {p.mask.row_stride, p.bias.row_stride,
                                       p.row_scale.row_stride};
    int64_t offset[3];
    row_offsets(p.shape, row, strides, offset);
    s.limit = static_cast<int>(max(int64_t(0), min(int64_t(count), valid_length(p, row) - begin)));
    s.mask_stride = p.mask.reduce_stride[0];
    s.mask = p.mask.data
                 ? static_cast<const uint8_t*>(p.mask.data) + offset[0] + begin * s.mask_stride
                 : nullptr;
    s.bias_dtype = p.bias.dtype;
    s.bias_stride = p.bias.reduce_stride[0];
    s.bias = p.bias.data;
    s.bias_at = offset[1] + begin * s.bias_stride;
    s.scale = static_cast<Acc>(p.scale);
    if (p.row_scale.data != nullptr)
      s.scale *= static_cast<const Acc*>(p.row_scale.data)[offset[2]];
    return s;
  }

  // Bit i: element first + i takes part.
  template <int kCount>
  __device__ __forceinline__ uint32_t valid_bits(int first) const {
    const int low = first < 0 ? -first : 0, high = min(limit - first, kCount);
    if (high <= low) return 0;
    uint32_t bits = ((1u << high) - 1) & ~((1u << low) - 1);
    if (mask == nullptr) return bits;
    if constexpr (kCount == 8) {
      const uint8_t* p = mask + first;
      if (mask_stride == 1 && bits == 0xff && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
        const uint2 bytes = ptx::ld_global_64(p);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (((i < 4 ? bytes.x : bytes.y) >> (8 * (i % 4)) & 0xff) == 0) bits &= ~(1u << i);
        return bits;
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if ((bits >> i & 1) && mask[(first + i) * mask_stride] == 0) bits &= ~(1u << i);
    return bits;
  }

  __device__ __forceinline__ Acc bias_of(int i) const {
    return bias ? load_any<Acc>(bias_dtype, bias, bias_at + i * bias_stride) : Acc(0);
  }
};

}  // namespace fastops::softmax::cuda
