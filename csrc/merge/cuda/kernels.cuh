// The kernels over rows.cuh: merge and unmerge. Every tensor of a merge is one y of the grid, so a
// tuple is one launch whatever its dtypes.
#pragma once

#include "merge/cuda/rows.cuh"

namespace fastops::merge::cuda {

// fn(T()) for the element type of a tensor.
template <typename Fn>
__device__ __forceinline__ void with_type(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::f64: return fn(double());
    case DType::f16: return fn(__half());
    case DType::bf16: return fn(__nv_bfloat16());
    default: return fn(float());
  }
}

// Where warp w of a tensor works: row o of a sample and middle.
struct Place {
  int64_t sample, middle, row;
  bool exists;

  __device__ __forceinline__ Place(int64_t batch, int64_t middles, int64_t rows) {
    const int64_t w = warp_index();
    exists = w < batch * middles * rows;
    row = w % rows;
    middle = w / rows % middles;
    sample = w / rows / middles;
  }
};

//   holds     one vector of 16 bytes a lane (and its sums)   barriers  none
//   bytes     x once, y once; the plan per row; mlerp reads a row with several tokens three times
template <bool kVector>
__global__ __launch_bounds__(kRowThreads,
                             1) void merge_kernel(const __grid_constant__ MergeParams p) {
  const int t = blockIdx.y;
  const Rows &x = p.x[t], &y = p.y[t];
  const Place at(p.plan.batch, x.middle, p.plan.num_out);
  if (!at.exists) return;
  const Members members(p.plan, at.sample, at.row);
  const double total = total_size(p.size, p.size_dtype, at.sample * p.plan.num_tokens, members);
  if (t == 0 && at.middle == 0 && threadIdx.x % kWarp == 0) {
    const int64_t o = at.sample * p.plan.num_out + at.row;
    set_scalar(p.merged, p.size_dtype, o, total);
    set_scalar(p.log_merged, p.size_dtype, o, log(total));
  }
  with_type(x.dtype, [&](auto element) {
    merge_row<decltype(element), kVector>(p, x, y, at.sample, at.middle, at.row, members, total);
  });
}

//   holds     two vectors of 16 bytes a lane     bytes  y, residual and out once
template <bool kVector>
__global__ __launch_bounds__(kRowThreads,
                             1) void unmerge_kernel(const __grid_constant__ UnmergeParams p) {
  const Place at(p.plan.batch, p.out.middle, p.plan.num_tokens);
  if (!at.exists) return;
  const int64_t o = p.plan.map[at.sample * p.plan.num_tokens + at.row];
  const bool mapped = o >= 0 && o < p.plan.num_out;
  with_type(p.out.dtype, [&](auto element) {
    using R = Row<decltype(element), kVector>;
    const R out(p.out, at.sample, at.middle, at.row);
    const R y(p.y, at.sample, at.middle, mapped ? o : 0);
    const R residual(p.residual, at.sample, at.middle, at.row);
    const bool adds = p.residual.data != nullptr;
    for_channels<R::kWidth>(p.out.channels, [&](int64_t c) {
      if (mapped && adds) {
        typename R::Acc a[R::kWidth], b[R::kWidth];
        y.load(c, a);
        residual.load(c, b);
#pragma unroll
        for (int k = 0; k < R::kWidth; ++k) a[k] += b[k];
        out.store(c, a);
      } else if (mapped) {
        out.copy(y, c);
      } else if (adds) {
        out.copy(residual, c);
      } else {
        out.zero(c);
      }
    });
  });
}

}  // namespace fastops::merge::cuda
