#include "cuda/launch.h"
#include "softmax/cuda/launch.cuh"

namespace fastops::softmax::cuda {

template <typename Acc>
void run_strided(const ForwardParams& p, const Plan& plan, bool rows_fast, void* stream) {
  launch(&strided_forward_kernel<Acc>, config("softmax strided", plan, stream), p, plan.lanes,
         plan.parts, rows_fast);
}

template <typename Acc>
void run_strided(const BackwardParams& p, const Plan& plan, bool rows_fast, void* stream) {
  launch(&strided_backward_kernel<Acc>, config("softmax strided backward", plan, stream), p,
         plan.lanes, plan.parts, rows_fast);
}

template void run_strided<float>(const ForwardParams&, const Plan&, bool, void*);
template void run_strided<double>(const ForwardParams&, const Plan&, bool, void*);
template void run_strided<float>(const BackwardParams&, const Plan&, bool, void*);
template void run_strided<double>(const BackwardParams&, const Plan&, bool, void*);

}  // namespace fastops::softmax::cuda
