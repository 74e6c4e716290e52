// Rows cut into aligned vectors. A row may start anywhere: vector v covers the elements
// [v * kVec - shift, (v + 1) * kVec - shift), so that every whole vector is one aligned access, and
// only the first and the last may be partial. Partial vectors take a short scalar loop.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cuda/ptx/memory.cuh"
#include "cuda/runtime.h"

namespace fastops::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

template <typename T>
struct Element;
template <>
struct Element<float> {
  static constexpr DType kDType = DType::f32;
  static constexpr uint64_t kInfinity = 0x7f8000007f800000ull;  // +inf in every element of 8 bytes
};
template <>
struct Element<double> {
  static constexpr DType kDType = DType::f64;
  static constexpr uint64_t kInfinity = 0x7ff0000000000000ull;
};
template <>
struct Element<Half> {
  static constexpr DType kDType = DType::f16;
  static constexpr uint64_t kInfinity = 0x7c007c007c007c00ull;
};
template <>
struct Element<BFloat16> {
  static constexpr DType kDType = DType::bf16;
  static constexpr uint64_t kInfinity = 0x7f807f807f807f80ull;
};

// -inf in every element of 8 bytes: the sign bits go with the exponent's.
template <typename T>
inline constexpr uint64_t kNegativeInfinity =
    Element<T>::kInfinity | (sizeof(T) == 8   ? 0x8000000000000000ull
                             : sizeof(T) == 4 ? 0x8000000080000000ull
                                              : 0x8000800080008000ull);

template <typename T>
inline constexpr int kVec = 16 / sizeof(T);

// Sixteen bytes as loaded.
using Raw = uint4;

__device__ __forceinline__ uint64_t join(uint32_t low, uint32_t high) {
  return low | static_cast<uint64_t>(high) << 32;
}
__device__ __forceinline__ Raw raw_of(uint64_t low, uint64_t high) {
  return {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
          static_cast<uint32_t>(high >> 32)};
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(BFloat16 v) { return __bfloat162float(v); }

// Element i (a constant after unrolling) of a raw vector, in the accumulation type.
template <typename T>
__device__ __forceinline__ auto element(const Raw& raw, int i) {
  if constexpr (sizeof(T) == 8) {
    return i == 0 ? __hiloint2double(raw.y, raw.x) : __hiloint2double(raw.w, raw.z);
  } else if constexpr (sizeof(T) == 4) {
    return __uint_as_float(i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w);
  } else {
    const uint32_t word = i < 2 ? raw.x : i < 4 ? raw.y : i < 6 ? raw.z : raw.w;
    const uint32_t bits = i % 2 ? word >> 16 : word & 0xffff;
    if constexpr (Element<T>::kDType == DType::bf16) return __uint_as_float(bits << 16);
    else return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
}

template <typename T>
__device__ __forceinline__ uint64_t bits_of(const T* p) {
  if constexpr (sizeof(T) == 8) return *reinterpret_cast<const uint64_t*>(p);
  else if constexpr (sizeof(T) == 4) return *reinterpret_cast<const uint32_t*>(p);
  else return *reinterpret_cast<const uint16_t*>(p);
}

// Elements [first, first + kVec) of a row, of which only those in [0, count) exist; the others
// keep the bits of `fill`. A rolled loop on purpose: it runs for at most two vectors of a row.
template <typename T>
__device__ __forceinline__ Raw load_partial(const T* row, int first, int count, uint64_t fill) {
  constexpr int kHalf = 8 / sizeof(T), kWidth = 8 * sizeof(T);
  constexpr uint64_t kOnes = kWidth == 64 ? ~0ull : (1ull << (kWidth % 64)) - 1;
  const int begin = first < 0 ? -first : 0;
  const int end = min(count - first, 2 * kHalf);
  uint64_t low = fill, high = fill;
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const int shift = (i & (kHalf - 1)) * kWidth;
    const uint64_t bits = bits_of(row + first + i) << shift, keep = ~(kOnes << shift);
    if (i < kHalf) low = (low & keep) | bits;
    else high = (high & keep) | bits;
  }
  return raw_of(low, high);
}

// The elements [first, first + kVec) of a row as loaded, those outside [0, count) replaced by the
// bits of `fill`.
template <typename T>
__device__ __forceinline__ Raw keep_elements(const Raw& raw, int first, int count, uint64_t fill) {
  static_assert(sizeof(T) <= 4);
  constexpr int kPerWord = 4 / sizeof(T);
  const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
  uint32_t kept[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    uint32_t keep = 0;
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) {
      const int at = first + w * kPerWord + i;
      const uint32_t ones = kPerWord == 1 ? ~0u : 0xffffu << (16 * i);
      if (at >= 0 && at < count) keep |= ones;
    }
    kept[w] = (word[w] & keep) | (static_cast<uint32_t>(fill) & ~keep);
  }
  return {kept[0], kept[1], kept[2], kept[3]};
}

// Stores those of the 16 / sizeof(T) elements from `first` on that lie in [0, count).
template <typename T>
__device__ __forceinline__ void store_partial(T* row, int first, int count, const Raw& raw) {
  constexpr int kHalf = 8 / sizeof(T), kWidth = 8 * sizeof(T);
  const uint64_t low = join(raw.x, raw.y), high = join(raw.z, raw.w);
  const int begin = first < 0 ? -first : 0;
  const int end = min(count - first, 2 * kHalf);
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const uint64_t bits = (i < kHalf ? low : high) >> ((i & (kHalf - 1)) * kWidth);
    if constexpr (sizeof(T) == 8) *reinterpret_cast<uint64_t*>(row + first + i) = bits;
    else if constexpr (sizeof(T) == 4) *reinterpret_cast<uint32_t*>(row + first + i) = bits;
    else *reinterpret_cast<uint16_t*>(row + first + i) = bits;
  }
}

__device__ __forceinline__ uint32_t pack2(Half, float a, float b) {
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack2(BFloat16, float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Sixteen bytes of T from as many accumulation values.
template <typename T, typename Acc>
__device__ __forceinline__ Raw pack(const Acc* v) {
  if constexpr (sizeof(T) == 8) {
    return raw_of(__double_as_longlong(v[0]), __double_as_longlong(v[1]));
  } else if constexpr (sizeof(T) == 4) {
    return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
            __float_as_uint(v[3])};
  } else {
    return {pack2(T(), v[0], v[1]), pack2(T(), v[2], v[3]), pack2(T(), v[4], v[5]),
            pack2(T(), v[6], v[7])};
  }
}

// Stores kCount values as T at elements [first, first + kCount) of a row of `count` elements;
// `aligned`: that address is a multiple of the bytes stored (16 at most).
template <typename T, int kCount, typename Acc>
__device__ __forceinline__ void store_vector(T* row, int first, int count, bool aligned,
                                             const Acc (&v)[kCount]) {
  const bool whole = aligned && first >= 0 && first + kCount <= count;
  constexpr int kStep = kVec<T> < kCount ? kVec<T> : kCount;
  if constexpr (kCount < kVec<T>) {  // half the bytes: fp32 in, half out
    const uint2 raw = {pack2(T(), v[0], v[1]), pack2(T(), v[2], v[3])};
    if (whole) ptx::st_global_64(row + first, raw);
    else store_partial(row, first, min(count, first + kCount), {raw.x, raw.y, 0, 0});
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += kStep) {
      const Raw raw = pack<T>(v + i);
      if (whole) ptx::st_global_128(row + first + i, raw);
      else store_partial(row, first + i, count, raw);
    }
  }
}

// Whether a vector store of kCount elements of T at `p` is aligned.
template <typename T, int kCount>
__device__ __forceinline__ bool is_aligned(const T* p) {
  constexpr unsigned kBytes = kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16;
  return reinterpret_cast<uintptr_t>(p) % kBytes == 0;
}

}  // namespace fastops::cuda
