// Activations as fp32 scratch: row by row, or feature by feature with rows in lanes.
#pragma once

#include "cpu/simd.h"
#include "cpu/transpose.h"
#include "nm/cpu/heuristics.h"
#include "nm/nm.h"

namespace fastops::nm::cpu {
namespace {

using fastops::cpu::bf16;
using fastops::cpu::f16;
using fastops::cpu::VecF32;

inline float scalar(float f) { return f; }
inline float scalar(f16 h) { return fastops::cpu::to_float(h); }
inline float scalar(bf16 h) { return fastops::cpu::to_float(h); }

template <typename F>
void with_element(DType t, F f) {
  switch (t) {
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

// Fetches a line of a stream of weights: into L1 where they are multiplied at the speed of memory.
template <int kRows>
void prefetch_stream(const void* weights) {
  __builtin_prefetch(weights, 0, kRows <= kReadRows ? 3 : 2);
}

// Features [begin, begin + count) of one row, count <= VecF32::size; 0 in the other lanes.
template <typename T>
VecF32 load_features(const T* row, int64_t stride, int64_t begin, int count) {
  if (stride == 1)
    return count == VecF32::size ? VecF32::load(row + begin) : VecF32::load(row + begin, count);
  alignas(64) float lane[VecF32::size] = {};
  for (int i = 0; i < count; ++i) lane[i] = scalar(row[(begin + i) * stride]);
  return VecF32::load(lane);
}

// Row `row` in order, followed by zeros up to `pitch`.
template <typename T>
void copy_row(const Rows& x, int64_t row, float* to, int64_t pitch) {
  const T* from = static_cast<const T*>(x.data) + x.offset(row);
  for (int64_t i = 0; i < pitch; i += VecF32::size) {
    const int64_t left = x.features - i;
    const int count = int(left < 0 ? 0 : left < VecF32::size ? left : VecF32::size);
    load_features(from, x.feature_stride, i, count).store(to + i);
  }
}

// At most VecF32::size rows of features [begin, begin + count), from `to` on as [feature][pitch];
// zeros in lanes from `rows` on.
template <typename T>
void pack_block(const Rows& x, int64_t row, int64_t rows, int64_t pitch, int64_t begin,
                int64_t count, float* to) {
  constexpr int kLanes = VecF32::size;
  constexpr int kAhead = 256 / int(sizeof(T));  // as many streams as rows are too many for hardware
  const T* from[kLanes];
  for (int i = 0; i < kLanes; ++i)
    from[i] = i < rows ? static_cast<const T*>(x.data) + x.offset(row + i) : nullptr;
  for (int64_t f = 0; f < count; f += kLanes) {
    const int n = int(count - f < kLanes ? count - f : kLanes);
    VecF32 square[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      square[i] = from[i] ? load_features(from[i], x.feature_stride, begin + f, n) : VecF32(0.f);
      if (from[i] && x.feature_stride == 1 && f + kAhead < count)
        __builtin_prefetch(from[i] + begin + f + kAhead);
    }
    fastops::cpu::transpose(square);
    for (int i = 0; i < n; ++i) square[i].store(to + (f + i) * pitch);
  }
}

// Rows [row, row + rows) of features [begin, begin + count) as [feature][width], zeros from lane
// `rows` on. width: a multiple of VecF32::size, at least `rows`.
template <typename T>
void pack_features(const Rows& x, int64_t row, int64_t rows, int64_t width, int64_t begin,
                   int64_t count, float* to) {
  for (int64_t r = 0; r < width; r += VecF32::size)
    pack_block<T>(x, row + r, rows - r, width, begin, count, to + r);
}

}  // namespace
}  // namespace fastops::nm::cpu
