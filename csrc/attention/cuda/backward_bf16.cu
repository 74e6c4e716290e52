#include "attention/cuda/launch_backward.cuh"

namespace fastops::attention::cuda {

void backward_bf16(const BackwardParams& p, void* stream) {
  run_backward<__nv_bfloat16>(p, stream);
}

}  // namespace fastops::attention::cuda
