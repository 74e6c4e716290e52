// Tiles of tokens in shared memory for the match on tensor cores: [row][64 channels] of 16 bits,
// the 16-byte pieces of a row swizzled by row, so that neither stores nor ldmatrix meet bank
// conflicts. Rows of tokens that take no part are zeros.
#pragma once

#include <type_traits>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/memory.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/registers.cuh"
#include "merge/cuda/heuristics.h"
#include "merge/cuda/score.cuh"

namespace fastops::merge::cuda {

using fastops::cuda::BFloat16;
using fastops::cuda::Half;
using fastops::cuda::pack2;

__device__ __forceinline__ unsigned tile_at(unsigned tile, int row, int piece) {
  return tile + row * kChunkBytes + (piece ^ (row & 7)) * 16;
}

// Rows of a tile: sources or destinations from `first` on.
template <bool kSources>
struct Side {
  const MatchParams& p;
  int64_t sample, first;

  // -1: takes no part.
  __device__ __forceinline__ int64_t token(int row) const {
    const int64_t i = first + row;
    if (i >= (kSources ? p.part.num_src : p.part.num_dst)) return -1;
    const int64_t t = kSources ? p.part.src(sample, i) : p.part.dst(sample, i);
    return p.part.takes_part(sample, t) ? t : -1;
  }
};

// 1 / sqrt to about an ulp, without the subroutine calls of exact division and root.
__device__ __forceinline__ float inverse_root(float s) {
  const float y = rsqrtf(s);
  return y * (1.5f - 0.5f * s * y * y);
}

inline constexpr float kOdd = -1.f;  // for an inverse norm: of a magnitude that fp32 cannot square

// 1 / |token| from its sum of squares: 0 for zeros, NaN for what takes no part or is not finite, so
// that its scores are never the greatest.
template <typename T>
__device__ __forceinline__ float inverse_norm(const MatchParams& p, int64_t sample, int64_t token,
                                              float squares) {
  if (token >= 0 && in_range(squares)) return inverse_root(squares);
  const float none = __int_as_float(0x7fffffff);
  if (token < 0) return none;
  if constexpr (!std::is_same_v<T, BFloat16>) return squares == 0 ? 0.f : none;
  bool zero = true, finite = true;
#pragma unroll 1
  for (int64_t c = 0; c < p.channels; ++c) {
    const float v = fabsf(metric_at<T, float>(p, sample, token, c));
    zero &= v == 0;
    finite &= v < __int_as_float(0x7f800000);
  }
  return !finite ? none : zero ? 0.f : kOdd;
}

// ---- 16-bit elements as they are ----

// Channels 64 `chunk` and on of `rows` tokens; asynchronous, the caller commits.
template <typename T, typename S>
__device__ __forceinline__ void copy_rows(unsigned tile, int rows, const S& side, int chunk) {
  const MatchParams& p = side.p;
  const int piece = int(threadIdx.x) % 8;
  const int64_t c = int64_t{chunk} * kChunk + piece * 8;
  const T* from = static_cast<const T*>(p.metric) + side.sample * p.stride[0] + c;
#pragma unroll 1
  for (int r = int(threadIdx.x) / 8; r < rows; r += kMmaThreads / 8) {
    const int64_t t = c < p.channels ? side.token(r) : -1;
    const unsigned to = tile_at(tile, r, piece);
    if (t >= 0) ptx::cp_async_128(to, from + t * p.stride[2]);
    else ptx::st_shared_128(to, make_uint4(0, 0, 0, 0));
  }
}

// Adds the squares of half a row of a tile: thread i and i + 128, rows i / 2.
template <typename T>
__device__ __forceinline__ void add_squares(float (&sum)[2], unsigned tile, int rows) {
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int i = int(threadIdx.x) + u * kMmaThreads;
    if (i >= 2 * rows) continue;
#pragma unroll 1
    for (int piece = 0; piece < 4; ++piece) {
      const uint4 raw = ptx::ld_shared_128(tile_at(tile, i / 2, i % 2 * 4 + piece));
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float v = fastops::cuda::element<T>(raw, k);
        sum[u] += v * v;
      }
    }
  }
}

template <typename T, typename S>
__device__ __forceinline__ void finish_squares(const float (&sum)[2], float* inverse, int rows,
                                               const S& side) {
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int i = int(threadIdx.x) + u * kMmaThreads;
    if (i >= 2 * rows) continue;
    const float s = sum[u] + __shfl_xor_sync(kAllLanes, sum[u], 1);
    if (i % 2 == 0) inverse[i / 2] = inverse_norm<T>(side.p, side.sample, side.token(i / 2), s);
  }
}

// ---- fp32 values as two fp16 numbers each ----

// 8 channels of a token from c on, summed over the heads; zeros past the last.
template <typename T>
__device__ __forceinline__ void load_channels(float (&v)[8], const MatchParams& p, int64_t sample,
                                              int64_t token, int64_t c, bool vector) {
#pragma unroll
  for (int k = 0; k < 8; ++k) v[k] = 0.f;
  if (token < 0) return;
  const T* from = static_cast<const T*>(p.metric) + sample * p.stride[0] + token * p.stride[2] +
                  c * p.stride[3];
#pragma unroll 1
  for (int64_t h = 0; h < p.heads; ++h, from += p.stride[1]) {
    if (vector && c + 8 <= p.channels) {
      constexpr int kWidth = fastops::cuda::kVec<T>;
#pragma unroll
      for (int k = 0; k < 8; k += kWidth) {
        const uint4 raw = ptx::ld_global_128(from + k);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) v[k + i] += fastops::cuda::element<T>(raw, i);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k)
        if (c + k < p.channels) v[k] += to_wide(from[k * p.stride[3]]);
    }
  }
}

// Over the 8 lanes that share a row.
template <typename Op>
__device__ __forceinline__ float row_reduce(float v, const Op& op) {
#pragma unroll
  for (int step = 1; step < 8; step *= 2) v = op(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

// What a side's rows need from one chunk of channels to the next.
struct Norms {
  int exponent[kMmaThreads];  // of the power of two that scales a row
  float squares[kMmaThreads];
};

// Scales rows by powers of two, so that their greatest element is in [2^13, 2^14), and splits them:
// an element is the sum of an fp16 number in the first part of the tile and one in the second, to
// 2^-23 of itself or 2^-39 of the greatest. Inverse norms are of the scaled rows.
template <typename T, typename S>
__device__ __forceinline__ void split_rows(unsigned tile, int part_bytes, int rows, const S& side,
                                           int chunk, int chunks, Norms& norms, float* inverse,
                                           bool vector) {
  const MatchParams& p = side.p;
  const int piece = int(threadIdx.x) % 8;
#pragma unroll 1
  for (int r = int(threadIdx.x) / 8; r < rows; r += kMmaThreads / 8) {
    const int64_t t = side.token(r);
    const auto load = [&](float (&v)[8], int at) {
      load_channels<T>(v, p, side.sample, t, int64_t{at} * kChunk + piece * 8, vector);
    };
    float v[8];
    load(v, chunk);
    int exponent;
    if (chunk == 0) {
      float most = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) most = fmaxf(most, fabsf(v[k]));
#pragma unroll 1
      for (int next = 1; next < chunks; ++next) {
        float w[8];
        load(w, next);
#pragma unroll
        for (int k = 0; k < 8; ++k) most = fmaxf(most, fabsf(w[k]));
      }
      most = row_reduce(most, [](float a, float b) { return fmaxf(a, b); });
      // Subnormal numbers have no exponent of their own; 2^64 of them do.
      const bool tiny = most < __int_as_float(0x00800000);
      const float normal = tiny ? most * 1.8446744e19f : most;
      exponent = 140 - int(__float_as_uint(normal) >> 23) + (tiny ? 64 : 0);
      if (most == 0) exponent = 0;
      if (piece == 0) norms.exponent[r] = exponent;
    } else {
      exponent = norms.exponent[r];
    }
    // In two steps: the power itself may be out of range.
    const float first = __int_as_float((exponent / 2 + 127) << 23);
    const float second = __int_as_float((exponent - exponent / 2 + 127) << 23);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[k] = v[k] * first * second;
      sum += v[k] * v[k];
    }
    sum = row_reduce(sum, [](float a, float b) { return a + b; });
    if (piece == 0) {
      if (chunk > 0) sum += norms.squares[r];
      norms.squares[r] = sum;
      if (chunk == chunks - 1) inverse[r] = inverse_norm<Half>(p, side.sample, t, sum);
    }
    const uint4 high = {pack2(Half(), v[0], v[1]), pack2(Half(), v[2], v[3]),
                        pack2(Half(), v[4], v[5]), pack2(Half(), v[6], v[7])};
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] -= fastops::cuda::element<Half>(high, k);
    const uint4 low = {pack2(Half(), v[0], v[1]), pack2(Half(), v[2], v[3]),
                       pack2(Half(), v[4], v[5]), pack2(Half(), v[6], v[7])};
    ptx::st_shared_128(tile_at(tile, r, piece), high);
    ptx::st_shared_128(tile_at(tile, r, piece) + part_bytes, low);
  }
}

// ---- products ----

// acc += sources . destinations over `channels` (at most 64), for a warp's 32 x 64 scores. With two
// parts: the products of the small parts first, the product of both small ones left out.
template <typename E, int kParts>
__device__ __forceinline__ void multiply(float (&acc)[2][8][4], unsigned src, int src_part,
                                         unsigned dst, int dst_part, int64_t channels) {
  const int lane = ptx::opaque(int(threadIdx.x) % 32);
#pragma unroll
  for (int k = 0; k < kChunk / 16; ++k) {
    if (k > 0 && k * 16 >= channels) break;
    unsigned a[kParts][2][4];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int m = 0; m < 2; ++m)
        ptx::ldmatrix_x4(a[part][m],
                         tile_at(src + part * src_part, m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      unsigned b[kParts][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ptx::ldmatrix_x4(b[part], tile_at(dst + part * dst_part, n * 16 + lane % 8 + lane / 16 * 8,
                                          2 * k + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float (&d)[4] = acc[m][2 * n + i];
          if constexpr (kParts == 2) {
            ptx::mma_m16n8k16<E>(d, a[1][m], b[0][2 * i], b[0][2 * i + 1]);
            ptx::mma_m16n8k16<E>(d, a[0][m], b[1][2 * i], b[1][2 * i + 1]);
          }
          ptx::mma_m16n8k16<E>(d, a[0][m], b[0][2 * i], b[0][2 * i + 1]);
        }
    }
  }
}

}  // namespace fastops::merge::cuda
