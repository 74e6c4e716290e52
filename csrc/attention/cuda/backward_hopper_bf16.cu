#include "attention/cuda/launch_backward_hopper.cuh"

namespace fastops::attention::cuda {

void backward_hopper_bf16(const BackwardParams& p, const HopperCut& cut, bool by_key,
                          void* stream) {
  run_backward_hopper<__nv_bfloat16>(p, cut, by_key, stream);
}

}  // namespace fastops::attention::cuda
