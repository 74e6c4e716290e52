// What launchers of both passes on Hopper share: how TMA sees a tensor.
#pragma once

#include "attention/cuda/kernels.h"
#include "attention/cuda/tiles.h"
#include "cuda/ptx/wgmma_descriptor.cuh"
#include "cuda/tensor_map.h"

namespace fastops::attention::cuda {

// `rows` of `pack` heads, 64 channels of each, are a box.
inline CUtensorMap map_of(const Problem& p, const Heads& t, int64_t heads, int64_t length,
                          int64_t channels, int rows, int pack) {
  fastops::cuda::TensorMapSpec spec{t.data,
                                    p.dtype,
                                    4,
                                    {channels, length, heads, p.batch},
                                    {0, t.stride[2] * 2, t.stride[1] * 2, t.stride[0] * 2},
                                    {64, rows, pack, 1},
                                    ptx::Swizzle::b128};
  for (int d = 1; d < 4; ++d)
    if (spec.size[d] == 1) spec.stride[d] = 16;  // whatever it was: it is not used
  return fastops::cuda::make_tensor_map(spec);
}

}  // namespace fastops::attention::cuda
