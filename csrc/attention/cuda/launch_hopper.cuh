// From a forward problem to a Hopper kernel of its element type.
#pragma once

#include "attention/cuda/forward_hopper.cuh"
#include "attention/cuda/kernels.h"
#include "attention/cuda/tiles.h"
#include "cuda/tensor_map.h"

namespace fastops::attention::cuda {

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

template <typename T, int kD, int kConsumers>
void run_hopper(const ForwardParams& p, const HopperCut& cut, void* stream) {
  using Tile = HopperTile<kD, kConsumers>;
  const int unit = cut.block_kv < Tile::kColumns ? cut.block_kv : Tile::kColumns;
  const HopperMaps maps = {
      map_of(p, p.q, p.heads, p.seq_q, p.head_dim, cut.rows, cut.pack),
      map_of(p, p.k, p.kv_heads, p.seq_kv, p.head_dim, unit, 1),
      map_of(p, p.v, p.kv_heads, p.seq_kv, p.value_dim, unit, 1),
  };
  launch(&forward_hopper_kernel<T, kD, kConsumers>,
         {"attention forward hopper", grid_of(cut.tiles, p.batch * (p.heads / cut.pack)),
          dim3(Tile::kThreads), Tile::kShared, 1, stream},
         p, maps, cut);
}

template <typename T>
void run_forward_hopper(const ForwardParams& p, const HopperCut& cut, void* stream) {
  if (padded_channels(p.head_dim, p.value_dim) == 64) {
    if (cut.consumers == 2) run_hopper<T, 64, 2>(p, cut, stream);
    else run_hopper<T, 64, 1>(p, cut, stream);
  } else {
    if (cut.consumers == 2) run_hopper<T, 128, 2>(p, cut, stream);
    else run_hopper<T, 128, 1>(p, cut, stream);
  }
}

}  // namespace fastops::attention::cuda
