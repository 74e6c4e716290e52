#include "nm/cuda/dense_matmul.cuh"
#include "nm/cuda/matmul.h"

namespace fastops::nm::cuda {

void run_dense_f16(const MatmulParams& p, void* stream) { run_dense<Half>(p, stream); }
void run_weight_grad_f16(const WeightGradParams& p, void* stream) {
  run_weight_grad<Half>(p, stream);
}

}  // namespace fastops::nm::cuda
