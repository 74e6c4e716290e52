#include "nm/cuda/wgmma_matmul.cuh"

namespace fastops::nm::cuda {

void run_wgmma_f16(const MatmulParams& p, const SparsePlan& plan, void* stream) {
  run_wgmma<Half>(p, plan, stream);
}

}  // namespace fastops::nm::cuda
