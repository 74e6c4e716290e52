#include "nm/cuda/sparse_matmul.cuh"

namespace fastops::nm::cuda {

void run_sparse_f16(const MatmulParams& p, void* stream) { run_sparse<Half>(p, stream); }

}  // namespace fastops::nm::cuda
