#include "nm/cuda/dense_matmul.cuh"
#include "nm/cuda/matmul.h"

namespace fastops::nm::cuda {

void run_dense_f32(const MatmulParams& p, void* stream) { run_dense<float>(p, stream); }
void run_weight_grad_f32(const WeightGradParams& p, void* stream) {
  run_weight_grad<float>(p, stream);
}

}  // namespace fastops::nm::cuda
