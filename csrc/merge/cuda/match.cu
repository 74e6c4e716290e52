#include "cuda/launch.h"
#include "merge/cuda/launch.h"
#include "merge/cuda/match.cuh"

namespace fastops::merge::cuda {

void match(const MatchParams& p, void* stream) {
  const int64_t tiles = (p.part.num_src + kMatchTile - 1) / kMatchTile;
  const fastops::cuda::Launch config{
      "merge match", dim3(unsigned(tiles * p.batch)), dim3(kMatchThreads), 0, 1, stream};
  switch (p.dtype) {
    case DType::f64: return launch(&match_kernel<double, double>, config, p);
    case DType::f16: return launch(&match_kernel<__half, float>, config, p);
    case DType::bf16: return launch(&match_kernel<__nv_bfloat16, float>, config, p);
    default: return launch(&match_kernel<float, float>, config, p);
  }
}

}  // namespace fastops::merge::cuda
