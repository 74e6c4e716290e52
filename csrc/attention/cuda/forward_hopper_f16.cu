#include "attention/cuda/launch_forward_hopper.cuh"

namespace fastops::attention::cuda {

void forward_hopper_f16(const ForwardParams& p, const HopperCut& cut, void* stream) {
  run_forward_hopper<__half>(p, cut, stream);
}

}  // namespace fastops::attention::cuda
