// The packing that mma.sp reads. A block is 64 outputs by 64 inputs:
//
//   weights    [out block][in block][k half 2][m tile 4][lane 32][8 halves]: a lane's 16 bytes are
//   its
//              A fragment of mma.sp m16n8k32
//   structure  [out block][in block][lane 32][m tile 4] u32: a lane's 16 bytes are its metadata for
//              64 inputs; lanes with t = lane % 4 of 0 and 1 serve the first half (selector 0), 2
//              and 3 the second
//
// Where a quad of inputs keeps fewer than two, zeros fill it at places that keep the order.
#pragma once

#include "nm/cuda/shape.cuh"

namespace fastops::nm::cuda {

inline constexpr int kTileOutputs = 64, kTileInputs = 64;
inline constexpr int kBlockHalves = kTileOutputs * kTileInputs / 2;
inline constexpr int kBlockMetadataBytes = kTileOutputs * kTileInputs / 8;

struct SparseTiles {
  int64_t out_blocks, in_blocks;
};
inline SparseTiles sparse_tiles_of(const Weight& w) {
  return {ceil_div(w.out, kTileOutputs), ceil_div(w.in, kTileInputs)};
}

}  // namespace fastops::nm::cuda
