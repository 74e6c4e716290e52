#include "attention/cuda/launch_forward.cuh"

namespace fastops::attention::cuda {

void forward_f32(const ForwardParams& p, void* stream) { run_forward<float>(p, stream); }

}  // namespace fastops::attention::cuda
