#include "softmax/cuda/launch.cuh"

namespace fastops::softmax::cuda {

template void run_backward<__half>(const BackwardParams& p, const Plan& plan, bool full,
                                   void* stream);

}  // namespace fastops::softmax::cuda
