#include "softmax/cuda/launch.cuh"

namespace fastops::softmax::cuda {

template void run_forward<__nv_bfloat16>(const ForwardParams& p, const Plan& plan, bool full,
                                         void* stream);

}  // namespace fastops::softmax::cuda
