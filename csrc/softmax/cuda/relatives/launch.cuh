// How the kernels of the relatives are launched: a block per row, as many threads as the row feeds.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "softmax/cuda/launch.cuh"
#include "softmax/cuda/relatives/row.cuh"

namespace fastops::softmax::cuda {

// Shared memory that is not the row's: what the kernels declare, with room to spare.
inline constexpr int64_t kOtherShared = 8 * 1024;

inline unsigned row_threads(int64_t n) {
  const int64_t wanted = std::clamp<int64_t>(ceil_div(n, 4), kWarpLanes, kRowThreadsMost);
  return static_cast<unsigned>(ceil_div(wanted, kWarpLanes) * kWarpLanes);
}

// Bytes of shared memory that keep a row of n scores, 0 where it does not fit.
inline int64_t kept_bytes(int64_t n, int64_t element) {
  const int64_t bytes = ceil_div(n * element, 16) * 16;
  return bytes + kOtherShared <= fastops::cuda::device_info().shared_optin ? bytes : 0;
}

inline Launch row_launch(const char* name, const Shape& shape, int64_t shared, void* stream) {
  return {name,  grid_of(shape.rows), dim3(row_threads(shape.n)), static_cast<size_t>(shared), 1u,
          stream};
}

}  // namespace fastops::softmax::cuda
