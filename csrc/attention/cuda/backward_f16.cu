#include "attention/cuda/launch_backward.cuh"

namespace fastops::attention::cuda {

void backward_f16(const BackwardParams& p, void* stream) { run_backward<__half>(p, stream); }

}  // namespace fastops::attention::cuda
