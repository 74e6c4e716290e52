#include "attention/cuda/launch_forward.cuh"

namespace fastops::attention::cuda {

void forward_bf16(const ForwardParams& p, void* stream) { run_forward<__nv_bfloat16>(p, stream); }

}  // namespace fastops::attention::cuda
