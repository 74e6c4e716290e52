// The threshold of entmax by a block: cpu/root.h says how, here every element is a candidate to the
// end.
#pragma once

#include "softmax/cuda/relatives/row.cuh"

namespace fastops::softmax::cuda {

__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
__device__ __forceinline__ float root_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double root_of(double x) { return sqrt(x); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// y of d = s - max at a threshold, and its slope y^(2 - alpha).
template <typename Acc>
struct Terms {
  Acc alpha, e, inverse, tau, shift;

  __device__ __forceinline__ Terms(double a, double t)
      : alpha(static_cast<Acc>(a)),
        e(static_cast<Acc>(a - 1)),
        inverse(a == 1 ? Acc(0) : static_cast<Acc>(1 / (a - 1))),
        tau(static_cast<Acc>(t)),
        shift(static_cast<Acc>(t + 1)) {}

  __device__ __forceinline__ Acc operator()(Acc d, Acc& slope) const {
    slope = 0;
    if (!(d > -infinity<Acc>())) return 0;
    if (e == Acc(0)) return slope = exponential(d);
    const Acc w = fma(e, d, -tau);
    if (!(w > 0)) return 0;
    if (e == Acc(1)) {
      slope = 1;
      return w;
    }
    if (e == Acc(0.5)) {
      slope = w;
      return w * w;
    }
    // Near 1, that is where e is small, the bits that count are in w - 1.
    const bool near = w > Acc(0.5) && w < Acc(2);
    const Acc l = near ? log1p_of(fma(e, d, -shift)) : log_of(w);
    const Acc y = exponential(l * inverse);
    slope = y / w;
    return y;
  }
};

struct Threshold {
  double tau, total;
};

// Of a row that is neither broken nor empty.
template <typename Acc>
__device__ __forceinline__ Threshold find_threshold(const MapParams& p, const RowView<Acc>& row,
                                                    Acc max, double alpha, double* partials) {
  const int64_t n = p.shape.n;
  const double e = alpha - 1;
  const double small = sizeof(Acc) == 8 ? 4e-16 : 6e-8;
  double tau = -1, low = -1, high = -exp(-e * log(static_cast<double>(n)));
  Threshold found{-1, 1};
#pragma unroll 1
  for (int i = 0; i < 100; ++i) {
    const Terms<Acc> terms(alpha, tau);
    Acc f = 0, g = 0;
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      Acc slope;
      f += terms(row.at(p, j) - max, slope);
      g += slope;
    }
    double sums[2] = {static_cast<double>(f), static_cast<double>(g)};
    block_sums(sums, partials);
    found = {tau, sums[0]};
    if (e == 0) return found;
    if (sums[0] >= 1) low = tau;
    else high = tau;
    const double log_f = log(sums[0]);
    const double step = expm1(e * log_f) * exp((1 - e) * log_f) / sums[1];
    const double enough = small * fmin(fabs(tau), fabs(e));
    double next = tau + step;
    if (e > 1) {
      if (!(next > low && next < high) || i % 3 == 2) next = 0.5 * (low + high);
      if (!(fabs(next - tau) > enough) || fabs(sums[0] - 1) <= small) break;
    } else if (!((e > 0 ? step : -step) > enough)) {
      break;
    }
    tau = next;
  }
  if (e != 1 && e != 0.5) return found;

  // From the support alone: no error of the iteration is left.
  const Acc edge = static_cast<Acc>(found.tau / e);
  double sums[2] = {0, 0};
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc d = row.at(p, j) - max;
    if (d > edge) {
      sums[0] += static_cast<double>(d);
      sums[1] += 1;
    }
  }
  block_sums(sums, partials);
  if (e == 1) return {(sums[0] - 1) / sums[1], 1};
  const double mean = 0.5 * sums[0] / sums[1];
  double spread[1] = {0};
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc d = row.at(p, j) - max;
    const double off = 0.5 * static_cast<double>(d) - mean;
    if (d > edge) spread[0] += off * off;
  }
  block_sums(spread, partials);
  return {mean - sqrt(fmax(0.0, (1 - spread[0]) / sums[1])), 1};
}

}  // namespace fastops::softmax::cuda
