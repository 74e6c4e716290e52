#include "attention/cuda/launch_forward.cuh"

namespace fastops::attention::cuda {

void forward_f16(const ForwardParams& p, void* stream) { run_forward<__half>(p, stream); }

}  // namespace fastops::attention::cuda
