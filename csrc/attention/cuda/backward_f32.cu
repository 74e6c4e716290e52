#include "attention/cuda/launch_backward.cuh"

namespace fastops::attention::cuda {

void backward_f32(const BackwardParams& p, void* stream) { run_backward<float>(p, stream); }

}  // namespace fastops::attention::cuda
