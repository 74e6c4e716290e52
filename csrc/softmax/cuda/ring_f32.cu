#include "softmax/cuda/ring_launch.cuh"

namespace fastops::softmax::cuda {

template void run_ring<float>(const ForwardParams& p, const Plan& plan, void* stream);
template void run_ring<float>(const BackwardParams& p, const Plan& plan, void* stream);

}  // namespace fastops::softmax::cuda
