#include "softmax/cuda/launch.cuh"

namespace fastops::softmax::cuda {

template void run_forward<double>(const ForwardParams& p, const Plan& plan, bool full,
                                  void* stream);

}  // namespace fastops::softmax::cuda
