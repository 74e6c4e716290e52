#include "nm/cuda/sparse_matmul.cuh"

namespace fastops::nm::cuda {

void run_sparse_bf16(const MatmulParams& p, void* stream) { run_sparse<BFloat16>(p, stream); }

}  // namespace fastops::nm::cuda
