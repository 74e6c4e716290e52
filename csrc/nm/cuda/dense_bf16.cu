#include "nm/cuda/dense_matmul.cuh"
#include "nm/cuda/matmul.h"

namespace fastops::nm::cuda {

void run_dense_bf16(const MatmulParams& p, void* stream) { run_dense<BFloat16>(p, stream); }
void run_weight_grad_bf16(const WeightGradParams& p, void* stream) {
  run_weight_grad<BFloat16>(p, stream);
}

}  // namespace fastops::nm::cuda
