// The maps from scores to weights, forward and backward, a block per row: any strides, any dtypes.
//
//   holds     the row's scores in shared memory, while they fit (else they are made again)
//   bytes     x once (kept) or once a sweep, dy twice, out once
//   barriers  2 per sum; entmax: about 5 sums
#pragma once

#include "softmax/cuda/relatives/root.cuh"

namespace fastops::softmax::cuda {

inline constexpr int kMostSums = 5;

template <typename Acc>
__device__ __forceinline__ double alpha_of(const MapParams& p, int64_t row) {
  if (p.row_alpha.data == nullptr) return p.alpha;
  return static_cast<const Acc*>(p.row_alpha.data)[row_offset(p, row, p.row_alpha.row_stride)];
}

__device__ __forceinline__ bool valid_alpha(double alpha) { return alpha > 0 && alpha <= 4; }

// u of softpick: exp(s - c) - exp(-c), c = max(m, 0), by expm1 where the difference would cancel.
template <typename Acc>
struct Softpick {
  Acc c, down;

  __device__ __forceinline__ explicit Softpick(Acc max)
      : c(max > 0 ? max : Acc(0)), down(exponential(max > 0 ? -max : Acc(0))) {}
  __device__ __forceinline__ Acc operator()(Acc s) const {
    if (!(s > -infinity<Acc>())) return 0;
    return magnitude(s) < 1 ? expm1_of(s) * down : exponential(s - c) - down;
  }
};

template <typename Acc>
__device__ __forceinline__ Acc stable(Acc s) {
  return s < 0 ? 1 / (1 - s) : s + 1;
}
// What t is multiplied by so that a row of t adds up without overflow.
template <typename Acc>
__device__ __forceinline__ Acc stable_scale(Acc max) {
  return max > Acc(sizeof(Acc) == 8 ? 1e300 : 1e30) ? Acc(0x1p-40) : Acc(1);
}
template <typename Acc>
__device__ __forceinline__ Acc log_stable(Acc s) {
  if (!(s > -infinity<Acc>())) return s;
  return s < 0 ? -log1p_of(-s) : log1p_of(s);
}

template <typename Acc>
__device__ __forceinline__ void store_loss(const MapParams& p, int64_t row, int64_t target,
                                           Acc loss) {
  if (threadIdx.x != 0) return;
  static_cast<Acc*>(p.per_row.data)[row_offset(p, row, p.per_row.row_stride)] =
      target == p.ignore_index ? Acc(0) : loss;
}

template <typename Acc>
__device__ __forceinline__ int64_t target_of(const MapParams& p, int64_t row) {
  return static_cast<const int64_t*>(p.target.data)[row_offset(p, row, p.target.row_stride)];
}

// y(j) of a map that needs no threshold, by its row's statistics.
template <typename Acc>
__global__ __launch_bounds__(kRowThreadsMost,
                             1) void map_forward_kernel(const __grid_constant__ MapParams p,
                                                        bool kept) {
  FASTOPS_DYNAMIC_SHARED(bytes);
  __shared__ double partials[32 * kMostSums];
  const int64_t r = linear_block(), n = p.shape.n;
  if (r >= p.shape.rows) return;
  RowView<Acc> row{AnyRow<Acc>::locate(p, p.x, r), kept ? reinterpret_cast<Acc*>(bytes) : nullptr};
  bool nan;
  const Acc max = load_row(p, row, nan, partials);
  const bool empty = !nan && max == -infinity<Acc>(), broken = nan || max == infinity<Acc>();
  const bool loss = p.target.data != nullptr;
  const int64_t target = loss ? target_of<Acc>(p, r) : 0;
  const int64_t out = row_offset(p, r, p.out.row_stride);
  const bool sparse = p.map == Map::entmax || p.map == Map::pladis;
  const double alpha = sparse ? alpha_of<Acc>(p, r) : 1.5;

  if (empty || broken || !valid_alpha(alpha) || (loss && (target < 0 || target >= n))) {
    const Acc nothing = p.map == Map::log_stablemax ? -infinity<Acc>() : Acc(0);
    const Acc value = empty && p.zero_masked_rows ? nothing : not_a_number<Acc>();
    if (loss) return store_loss(p, r, target, value);
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) store(p, p.out, out, j, value);
    return;
  }

  const auto sum = [&](auto f) {
    Acc total = 0;
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) total += f(row.at(p, j));
    double sums[1] = {static_cast<double>(total)};
    block_sums(sums, partials);
    return sums[0];
  };
  const auto write = [&](auto f) {
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) store(p, p.out, out, j, f(row.at(p, j)));
  };

  if (sparse) {
    const Threshold at = find_threshold(p, row, max, alpha, partials);
    const Terms<Acc> terms(alpha, at.tau);
    const Acc norm = static_cast<Acc>(1 / at.total);
    if (loss) {
      // As in cpu/forward.cpp: (1 - 1/alpha) <p, d - theta> + theta - d_t.
      const double theta = alpha == 1 ? log(at.total) : (at.tau + 1) / (alpha - 1);
      const double mean = alpha == 1 ? 0.0 : sum([&](Acc s) {
        Acc slope;
        const Acc y = terms(s - max, slope) * norm;
        return y > 0 ? y * (s - max - static_cast<Acc>(theta)) : Acc(0);
      });
      const double chosen = row.any.score(p, p.x, target);
      store_loss(p, r, target, static_cast<Acc>((1 - 1 / alpha) * mean + theta - (chosen - max)));
    } else if (p.map == Map::pladis) {
      const double total = sum([&](Acc s) { return exponential(s - max); });
      const Acc dense = static_cast<Acc>((1 - p.lambda) / total);
      const Acc lambda = norm * static_cast<Acc>(p.lambda);
      write([&](Acc s) {
        Acc slope;
        return fma(terms(s - max, slope), lambda, exponential(s - max) * dense);
      });
    } else {
      // The terms of a threshold add up to 1 but for its rounding: one more rounding, not two.
      const Acc rest = static_cast<Acc>(1 / at.total - 1);
      write([&](Acc s) {
        Acc slope;
        const Acc y = terms(s - max, slope);
        return alpha == 1 ? y * norm : fma(y, rest, y);
      });
    }
  } else if (p.map == Map::softpick) {
    const Softpick<Acc> u(max);
    const double total = sum([&](Acc s) { return magnitude(u(s)); });
    const Acc factor = static_cast<Acc>(1 / (total + p.epsilon));
    write([&](Acc s) { return s > 0 ? u(s) * factor : Acc(0); });
  } else {
    const Acc down = stable_scale(max);
    const double total = sum([&](Acc s) { return stable(s) * down; });
    const Acc factor = static_cast<Acc>(1 / total);
    const Acc log_total = static_cast<Acc>(log(total / static_cast<double>(down)));
    const bool logs = p.map == Map::log_stablemax;
    write([&](Acc s) { return logs ? log_stable(s) - log_total : stable(s) * down * factor; });
  }
}

// entmax, from y: dx, or per row the gradient of alpha (cpu/backward.cpp has its formula).
template <typename Acc>
__global__ __launch_bounds__(kRowThreadsMost,
                             1) void entmax_backward_kernel(const __grid_constant__ MapParams p,
                                                            bool kept) {
  FASTOPS_DYNAMIC_SHARED(bytes);
  __shared__ double partials[32 * kMostSums];
  const int64_t r = linear_block(), n = p.shape.n;
  if (r >= p.shape.rows) return;
  RowView<Acc> row{AnyRow<Acc>::locate(p, p.x, r), kept ? reinterpret_cast<Acc*>(bytes) : nullptr};
  const Acc scale = row.any.scale;
  row.any.scale = 1;
  const double alpha = alpha_of<Acc>(p, r), e = alpha - 1;
  const int64_t dy = row_offset(p, r, p.dy.row_stride);
  const auto dy_at = [&](int64_t j) {
    return load_any<Acc>(p.dy.dtype, p.dy.data,
                         dy + element_offset(p.shape, p.dy.reduce_stride, j));
  };
  // y^(2 - alpha); 0 off the support and where an element takes no part; NaN stays.
  const auto slope_of = [&](Acc y) {
    if (y == Acc(0) || y == -infinity<Acc>()) return Acc(0);
    if (e == 0 || y != y) return y;
    if (e == 1) return Acc(1);
    if (e == 0.5) return root_of(y);
    return exponential(log_of(y) * static_cast<Acc>(2 - alpha));
  };

  if (p.out.data == nullptr) {
    double sums[5] = {};
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      const Acc y = row.any.score(p, p.x, j);
      if (y == Acc(0) || y == -infinity<Acc>()) continue;
      const Acc l = log_of(y), t = static_cast<Acc>(-e) * l;
      Acc series = 0;
#pragma unroll 1
      for (int i = sizeof(Acc) == 8 ? 14 : 8; i >= 0; --i) series = (t * series + 1) / (i + 2);
      const Acc away = (exponential(t) - 1 - t) / (t * t);
      const Acc q = l * l * (magnitude(t) < Acc(0.5) ? series : away), g = y * dy_at(j);
      sums[0] += static_cast<double>(y * l);
      sums[1] += static_cast<double>(y * q);
      sums[2] += static_cast<double>(g);
      sums[3] += static_cast<double>(g * l);
      sums[4] += static_cast<double>(g * q);
    }
    block_sums(sums, partials);
    const double gradient = (sums[1] * (sums[2] - e * sums[3]) - sums[4] * (1 - e * sums[0])) /
                            (1 - e * sums[0] + e * e * sums[1]);
    if (threadIdx.x == 0)
      static_cast<Acc*>(p.per_row.data)[row_offset(p, r, p.per_row.row_stride)] =
          valid_alpha(alpha) ? static_cast<Acc>(gradient) : not_a_number<Acc>();
    return;
  }

  Acc slopes = 0, inner = 0;
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc g = slope_of(row.any.score(p, p.x, j));
    if (row.kept != nullptr) row.kept[j] = g;
    slopes += g;
    if (g != Acc(0)) inner += g * dy_at(j);
  }
  double sums[2] = {static_cast<double>(slopes), static_cast<double>(inner)};
  block_sums(sums, partials);
  const Acc mean = sums[0] == 0 ? Acc(0) : static_cast<Acc>(sums[1] / sums[0]);
  const int64_t out = row_offset(p, r, p.out.row_stride);
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const Acc g = row.kept != nullptr ? row.kept[j] : slope_of(row.any.score(p, p.x, j));
    store(p, p.out, out, j, g == Acc(0) ? Acc(0) : g * (dy_at(j) - mean) * scale);
  }
}

// The other maps and the loss, from x.
template <typename Acc>
__global__ __launch_bounds__(kRowThreadsMost,
                             1) void map_backward_kernel(const __grid_constant__ MapParams p,
                                                         bool kept) {
  FASTOPS_DYNAMIC_SHARED(bytes);
  __shared__ double partials[32 * kMostSums];
  const int64_t r = linear_block(), n = p.shape.n;
  if (r >= p.shape.rows) return;
  RowView<Acc> row{AnyRow<Acc>::locate(p, p.x, r), kept ? reinterpret_cast<Acc*>(bytes) : nullptr};
  bool nan;
  const Acc max = load_row(p, row, nan, partials), scale = row.any.scale;
  const Acc low = -infinity<Acc>();
  const bool empty = !nan && max == low, broken = nan || max == infinity<Acc>();
  const int64_t out = row_offset(p, r, p.out.row_stride);
  const bool loss = p.target.data != nullptr;
  const bool sparse = p.map == Map::entmax || p.map == Map::pladis;
  const double alpha = sparse ? alpha_of<Acc>(p, r) : 1.5;
  const int64_t target = loss ? target_of<Acc>(p, r) : 0;
  const bool ignored = loss && target == p.ignore_index;
  const bool wrong = !ignored && (!valid_alpha(alpha) || (loss && (target < 0 || target >= n)));

  if (empty || ignored || broken || wrong) {
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      const bool none = empty || ignored || row.at(p, j) == low;
      store(p, p.out, out, j, none ? Acc(0) : not_a_number<Acc>());
    }
    return;
  }

  const int64_t dy = loss ? 0 : row_offset(p, r, p.dy.row_stride);
  const auto dy_at = [&](int64_t j) {
    return load_any<Acc>(p.dy.dtype, p.dy.data,
                         dy + element_offset(p.shape, p.dy.reduce_stride, j));
  };
  // Sums of f(s, j), one or two, over the elements with a finite score.
  const auto sum = [&](auto f) {
    Acc a = 0, b = 0;
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      const Acc s = row.at(p, j);
      if (s != low) f(s, j, a, b);
    }
    double sums[2] = {static_cast<double>(a), static_cast<double>(b)};
    block_sums(sums, partials);
    return Threshold{sums[0], sums[1]};
  };
  const auto write = [&](auto f) {
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
      const Acc s = row.at(p, j);
      store(p, p.out, out, j, s == low ? Acc(0) : f(s, j) * scale);
    }
  };

  if (loss) {
    const Threshold at = find_threshold(p, row, max, alpha, partials);
    const Terms<Acc> terms(alpha, at.tau);
    const Acc norm = static_cast<Acc>(1 / at.total);
    const Acc grad =
        static_cast<const Acc*>(p.per_row.data)[row_offset(p, r, p.per_row.row_stride)];
    write([&](Acc s, int64_t j) {
      Acc slope;
      const Acc y = terms(s - max, slope) * norm;
      return (j == target ? y - 1 : y) * grad;
    });
  } else if (p.map == Map::pladis) {
    const Threshold at = find_threshold(p, row, max, alpha, partials);
    const Terms<Acc> terms(alpha, at.tau);
    const Threshold dense = sum([&](Acc s, int64_t j, Acc& total, Acc& inner) {
      const Acc v = exponential(s - max);
      total += v;
      inner += v * dy_at(j);
    });
    const Threshold sparse_sums = sum([&](Acc s, int64_t j, Acc& total, Acc& inner) {
      Acc slope;
      terms(s - max, slope);
      total += slope;
      if (slope != Acc(0)) inner += slope * dy_at(j);
    });
    const Acc dense_mean = static_cast<Acc>(dense.total / dense.tau);
    const Acc sparse_mean = static_cast<Acc>(sparse_sums.total / sparse_sums.tau);
    const Acc dense_factor = static_cast<Acc>((1 - p.lambda) / dense.tau);
    // The slopes are those of terms that add up to 1 but for alpha = 1.
    const Acc lambda = static_cast<Acc>(alpha == 1 ? p.lambda / at.total : p.lambda);
    write([&](Acc s, int64_t j) {
      Acc slope;
      terms(s - max, slope);
      const Acc grad = dy_at(j);
      return slope * lambda * (grad - sparse_mean) +
             exponential(s - max) * dense_factor * (grad - dense_mean);
    });
  } else if (p.map == Map::softpick) {
    const Softpick<Acc> u(max);
    const Threshold sums = sum([&](Acc s, int64_t j, Acc& total, Acc& inner) {
      const Acc v = u(s);
      total += magnitude(v);
      if (s > 0) inner += v * dy_at(j);
    });
    const double factor = 1 / (sums.tau + p.epsilon);
    const Acc inner = static_cast<Acc>(sums.total * factor), f = static_cast<Acc>(factor);
    write([&](Acc s, int64_t j) {
      const Acc ds = s > 0 ? dy_at(j) - inner : s < 0 ? inner : Acc(0);
      return exponential(s - u.c) * f * ds;
    });
  } else {
    const bool log = p.map == Map::log_stablemax;
    const Acc down = stable_scale(max);
    const Threshold sums = sum([&](Acc s, int64_t j, Acc& total, Acc& inner) {
      const Acc t = stable(s) * down;
      total += t;
      inner += log ? dy_at(j) : t * dy_at(j);
    });
    const Acc f = static_cast<Acc>(1 / sums.tau);
    const Acc inner = static_cast<Acc>(log ? sums.total : sums.total / sums.tau);
    write([&](Acc s, int64_t j) {
      const Acc y = stable(s) * down * f, grad = dy_at(j);
      return (log ? grad - y * inner : y * (grad - inner)) / (1 + magnitude(s));
    });
  }
}

}  // namespace fastops::softmax::cuda
