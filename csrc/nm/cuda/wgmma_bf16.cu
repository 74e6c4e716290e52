#include "nm/cuda/wgmma_matmul.cuh"

namespace fastops::nm::cuda {

void run_wgmma_bf16(const MatmulParams& p, const SparsePlan& plan, void* stream) {
  run_wgmma<BFloat16>(p, plan, stream);
}

}  // namespace fastops::nm::cuda
