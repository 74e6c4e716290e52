// What launchers of both passes share.
#pragma once

#include "attention/cuda/blocks.cuh"
#include "core/check.h"
#include "cuda/launch.h"

namespace fastops::attention::cuda {

using fastops::cuda::launch;

inline constexpr size_t kStaticShared = 1024;  // more than any kernel's beside its dynamic one

inline dim3 grid_of(int64_t blocks) {
  if (blocks >= int64_t{1} << 31)
    fail("fastops.block_sparse_attention: more than 2**31 tiles of rows");
  return dim3(unsigned(blocks));
}

}  // namespace fastops::attention::cuda
