// The backward pass of merge; csrc/merge/cpu/backward.cpp has the formulas.
#pragma once

#include "merge/cuda/kernels.cuh"

namespace fastops::merge::cuda {

// sum and mean: a warp per token, all tensors one after the other, so that the gradient of its size
// is one sum in a fixed order.
//   bytes     dy once, dx once; for sizes x and y of merged tokens too
template <bool kVector>
__global__ __launch_bounds__(kRowThreads, 1) void token_gradient_kernel(
    const __grid_constant__ MergeBackwardParams p) {
  const PlanView& plan = p.plan;
  const Place at(plan.batch, 1, plan.num_tokens);
  if (!at.exists) return;
  const int64_t i = at.row, token = at.sample * plan.num_tokens + i;
  int64_t o = plan.map[token];
  if (o >= plan.num_out) o = -1;
  const int64_t row = at.sample * plan.num_out + (o < 0 ? 0 : o);
  double weight = 1, total = 1;
  bool alone = true;
  if (p.mode == Mode::mean && o >= 0) {
    const int32_t* offsets = plan.offsets + at.sample * (plan.num_out + 1) + o;
    const int64_t count = int64_t(offsets[1]) - offsets[0];
    alone = count <= 1;
    total = p.merged ? scalar_at<double>(p.merged, p.size_dtype, row) : double(count);
    const double own = p.size ? scalar_at<double>(p.size, p.size_dtype, token) : 1.0;
    if (!alone) weight = p.size ? (total == 0 ? 0 : own / total) : 1.0 / double(count);
  }
  double dot = 0;
#pragma unroll 1
  for (int t = 0; t < p.tensors; ++t)
    with_type(p.dx[t].dtype, [&](auto element) {
      using R = Row<decltype(element), kVector>;
      using Acc = typename R::Acc;
      constexpr int kWidth = R::kWidth;
      const bool wants_dot = p.dsize && p.mode == Mode::mean && !alone;
#pragma unroll 1
      for (int64_t middle = 0; middle < p.dx[t].middle; ++middle) {
        const R dx(p.dx[t], at.sample, middle, i), dy(p.dy[t], at.sample, middle, o < 0 ? 0 : o);
        Acc sum = 0;
        for_channels<kWidth>(p.dx[t].channels, [&](int64_t c) {
          if (o < 0) return dx.zero(c);
          if (weight == 1 && !wants_dot) return dx.copy(dy, c);
          Acc g[kWidth], v[kWidth];
          dy.load(c, g);
          if (wants_dot) {
            Acc a[kWidth], b[kWidth];
            R(p.x[t], at.sample, middle, i).load(c, a);
            R(p.y[t], at.sample, middle, o).load(c, b);
#pragma unroll
            for (int k = 0; k < kWidth; ++k) sum += g[k] * (a[k] - b[k]);
          }
#pragma unroll
          for (int k = 0; k < kWidth; ++k) v[k] = g[k] * Acc(weight);
          dx.store(c, v);
        });
        if (wants_dot) dot += double(sum_lanes(sum));
      }
    });
  if (!p.dsize || threadIdx.x % kWarp != 0) return;
  double value = 0;
  if (o >= 0) {
    if (total != 0) value = dot / total;
    if (p.dmerged) value += scalar_at<double>(p.dmerged, p.size_dtype, row);
  }
  set_scalar(p.dsize, p.size_dtype, token, value);
}

// max and mlerp, before row_gradient_kernel: zeros for tokens that no row may name.
template <bool kVector>
__global__ __launch_bounds__(kRowThreads, 1) void zero_gradient_kernel(
    const __grid_constant__ MergeBackwardParams p) {
  const int t = blockIdx.y;
  const Place at(p.plan.batch, p.dx[t].middle, p.plan.num_tokens);
  if (!at.exists) return;
  with_type(p.dx[t].dtype, [&](auto element) {
    using R = Row<decltype(element), kVector>;
    const R dx(p.dx[t], at.sample, at.middle, at.row);
    for_channels<R::kWidth>(p.dx[t].channels, [&](int64_t c) { dx.zero(c); });
  });
  if (t == 0 && at.middle == 0 && p.dsize && threadIdx.x % kWarp == 0)
    set_scalar(p.dsize, p.size_dtype, at.sample * p.plan.num_tokens + at.row, 0);
}

template <typename T, bool kVector>
struct RowGradient {
  using R = Row<T, kVector>;
  using Acc = typename R::Acc;
  static constexpr int kWidth = R::kWidth;

  const MergeBackwardParams& p;
  int t;
  int64_t sample, middle, o;
  const Members& members;
  double total;

  __device__ __forceinline__ R row(const Rows& rows, int64_t at) const {
    return R(rows, sample, middle, at);
  }
  // A wrong plan may name a token in several rows: its gradient is that of the row in the map.
  __device__ __forceinline__ bool owns(int64_t i) const {
    return p.plan.map[sample * p.plan.num_tokens + i] == o;
  }
  __device__ __forceinline__ Acc weight(int64_t i) const {
    return p.size ? scalar_at<Acc>(p.size, p.size_dtype, sample * p.plan.num_tokens + i) : Acc(1);
  }

  __device__ __forceinline__ void max_row() const {
    const R dy = row(p.dy[t], o), y = row(p.y[t], o);
    for_channels<kWidth>(p.dx[t].channels, [&](int64_t c) {
      Acc most[kWidth], share[kWidth], ties[kWidth] = {};
      y.load(c, most);
      dy.load(c, share);
      members.each([&](int64_t i) {
        Acc v[kWidth];
        row(p.x[t], i).load(c, v);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) ties[k] += v[k] == most[k] ? Acc(1) : Acc(0);
      });
      members.each([&](int64_t i) {
        if (!owns(i)) return;
        Acc v[kWidth];
        row(p.x[t], i).load(c, v);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) v[k] = v[k] == most[k] ? share[k] / ties[k] : Acc(0);
        row(p.dx[t], i).store(c, v);
      });
    });
  }

  __device__ __forceinline__ Acc norm(int64_t i) const {
    Acc squares = 0;
    for_channels<kWidth>(p.dx[t].channels, [&](int64_t c) {
      Acc v[kWidth];
      row(p.x[t], i).load(c, v);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) squares += v[k] * v[k];
    });
    return Acc(sqrt(sum_lanes(squares)));
  }

  __device__ __forceinline__ void mean(int64_t c, Acc (&m)[kWidth]) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) m[k] = 0;
    members.each([&](int64_t i) {
      Acc v[kWidth];
      row(p.x[t], i).load(c, v);
      const Acc w = weight(i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) m[k] += w * v[k];
    });
#pragma unroll
    for (int k = 0; k < kWidth; ++k) m[k] /= Acc(total != 0 ? total : 1);
  }

  __device__ __forceinline__ void mlerp_row() const {
    const R dy = row(p.dy[t], o);
    const int64_t channels = p.dx[t].channels;
    Acc longest = 0, squares = 0, along = 0;
    members.each([&](int64_t i) { longest = norm(i) > longest ? norm(i) : longest; });
    for_channels<kWidth>(channels, [&](int64_t c) {
      Acc m[kWidth], g[kWidth];
      mean(c, m);
      dy.load(c, g);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        squares += m[k] * m[k];
        along += m[k] * g[k];
      }
    });
    const Acc length = Acc(sqrt(sum_lanes(squares)));
    along = sum_lanes(along);
    if (length == 0) return;  // y is 0 whatever the tokens do
    const Acc dlongest = along / length, scale = longest / length;
    int ties = 0;
    members.each([&](int64_t i) { ties += norm(i) == longest; });
    members.each([&](int64_t i) {
      if (!owns(i)) return;
      const Acc share = total != 0 ? weight(i) / Acc(total) : Acc(0);
      const Acc own = norm(i) == longest ? dlongest / Acc(ties) / longest : Acc(0);
      Acc dot = 0;
      for_channels<kWidth>(channels, [&](int64_t c) {
        Acc m[kWidth], g[kWidth], v[kWidth];
        mean(c, m);
        dy.load(c, g);
        row(p.x[t], i).load(c, v);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const Acc dm = (g[k] - m[k] * (dlongest / length)) * scale;
          dot += dm * (v[k] - m[k]);
          v[k] = share * dm + own * v[k];
        }
        row(p.dx[t], i).store(c, v);
      });
      dot = sum_lanes(dot);
      if (p.dsize && total != 0 && threadIdx.x % kWarp == 0) {
        const int64_t token = sample * p.plan.num_tokens + i;
        set_scalar(p.dsize, p.size_dtype, token,
                   scalar_at<double>(p.dsize, p.size_dtype, token) + double(dot) / total);
      }
    });
  }
};

// max and mlerp: a warp per row and all its tensors; a token belongs to one row.
//   bytes     mlerp recomputes the mean rather than keep it: rows of several tokens are read often
template <bool kVector>
__global__ __launch_bounds__(kRowThreads, 1) void row_gradient_kernel(
    const __grid_constant__ MergeBackwardParams p) {
  const PlanView& plan = p.plan;
  const Place at(plan.batch, 1, plan.num_out);
  if (!at.exists) return;
  const Members members(plan, at.sample, at.row);
  const int64_t count = members.count();
  if (count == 0) return;
  const double total = total_size(p.size, p.size_dtype, at.sample * plan.num_tokens, members);
  if (p.dsize && p.dmerged && threadIdx.x % kWarp == 0) {
    const double own =
        scalar_at<double>(p.dmerged, p.size_dtype, at.sample * plan.num_out + at.row);
    members.each([&](int64_t i) {
      const int64_t token = at.sample * plan.num_tokens + i;
      if (plan.map[token] == at.row) set_scalar(p.dsize, p.size_dtype, token, own);
    });
  }
#pragma unroll 1
  for (int t = 0; t < p.tensors; ++t)
    with_type(p.dx[t].dtype, [&](auto element) {
      using G = RowGradient<decltype(element), kVector>;
#pragma unroll 1
      for (int64_t middle = 0; middle < p.dx[t].middle; ++middle) {
        const G gradient{p, t, at.sample, middle, at.row, members, total};
        if (count == 1) {
          if (!gradient.owns(members.first())) continue;
          const auto dx = gradient.row(p.dx[t], members.first());
          const auto dy = gradient.row(p.dy[t], at.row);
          for_channels<G::kWidth>(p.dx[t].channels, [&](int64_t c) { dx.copy(dy, c); });
        } else if (p.mode == Mode::max) {
          gradient.max_row();
        } else {
          gradient.mlerp_row();
        }
      }
    });
}

}  // namespace fastops::merge::cuda
