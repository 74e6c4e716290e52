// What the match kernels share: the metric of a token, the cosine of any two, and the best of many.
#pragma once

#include "core/dtype.h"
#include "cuda/runtime.h"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vector.cuh"
#include "merge/merge.h"

namespace fastops::merge::cuda {

using fastops::cuda::kAllLanes;

inline constexpr int kNoIndex = 0x7fffffff;

__device__ __forceinline__ double to_wide(double v) { return v; }
template <typename T>
__device__ __forceinline__ float to_wide(T v) {
  return fastops::cuda::to_float(v);
}

template <typename Acc>
struct Lowest {
  static __device__ __forceinline__ Acc value() { return -Acc(__int_as_float(0x7f800000)); }
};

// Sums of squares outside these have lost digits, or are infinite; such rows go the slow way.
template <typename Acc>
__device__ __forceinline__ bool in_range(Acc squares) {
  if constexpr (sizeof(Acc) == 8) return squares >= 1e-290 && squares <= 1e305;
  else return squares >= 1e-30f && squares <= 1e37f;
}

// The metric of a token at a channel, summed over the heads: a cosine does not see the factor.
template <typename T, typename Acc>
__device__ __forceinline__ Acc metric_at(const MatchParams& p, int64_t sample, int64_t token,
                                         int64_t channel) {
  const T* at = static_cast<const T*>(p.metric) + sample * p.stride[0] + token * p.stride[2] +
                channel * p.stride[3];
  Acc sum = to_wide(*at);
  for (int64_t h = 1; h < p.heads; ++h) sum += to_wide(at[h * p.stride[1]]);
  return sum;
}

// The cosine of two tokens of any magnitude: NaN where one is not finite, 0 where one is 0.
template <typename T, typename Acc>
__device__ __forceinline__ Acc slow_cosine(const MatchParams& p, int64_t sample, int64_t a,
                                           int64_t b) {
  double most_a = 0, most_b = 0;
  bool finite = true;
#pragma unroll 1
  for (int64_t c = 0; c < p.channels; ++c) {
    const double x = fabs(double(metric_at<T, Acc>(p, sample, a, c)));
    const double y = fabs(double(metric_at<T, Acc>(p, sample, b, c)));
    finite &= x <= 1.7976931348623157e308 && y <= 1.7976931348623157e308;
    most_a = fmax(most_a, x);
    most_b = fmax(most_b, y);
  }
  if (!finite) return Acc(__longlong_as_double(0x7ff8000000000000ll));
  if (most_a == 0 || most_b == 0) return Acc(0);
  double dot = 0, aa = 0, bb = 0;
#pragma unroll 1
  for (int64_t c = 0; c < p.channels; ++c) {
    const double x = double(metric_at<T, Acc>(p, sample, a, c)) / most_a;
    const double y = double(metric_at<T, Acc>(p, sample, b, c)) / most_b;
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  return Acc(dot / sqrt(aa) / sqrt(bb));
}

// A score and its index: the greater score wins, the lower index among equal ones. NaN never does.
template <typename Acc>
struct Best {
  Acc score;
  int index;

  __device__ __forceinline__ void offer(Acc s, int i) {
    if (s > score || (s == score && i < index)) {
      score = s;
      index = i;
    }
  }
};

// Where no score was a number: the first destination that may receive, if any.
template <typename Acc>
__device__ __forceinline__ void write_match(const MatchParams& p, int64_t sample, int64_t i,
                                            Best<Acc> best) {
  const Partition& part = p.part;
  if (!part.takes_part(sample, part.src(sample, i))) best.index = kNoIndex;
  const bool found = best.index != kNoIndex;
  if (!found && part.takes_part(sample, part.src(sample, i))) {
    int64_t j = 0;
    while (j < part.num_dst && !part.takes_part(sample, part.dst(sample, j))) ++j;
    if (j < part.num_dst) best.index = int(j);
  }
  const int64_t at = sample * part.num_src + i;
  static_cast<Acc*>(p.scores)[at] = found ? best.score : Lowest<Acc>::value();
  p.matches[at] = best.index == kNoIndex ? -1 : best.index;
}

}  // namespace fastops::merge::cuda
