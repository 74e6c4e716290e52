// The products by element type, each compiled in a file of its own.
#pragma once

#include "nm/nm.h"

namespace fastops::nm::cuda {

void run_sparse_f16(const MatmulParams& p, void* stream);
void run_sparse_bf16(const MatmulParams& p, void* stream);

void run_dense_f32(const MatmulParams& p, void* stream);
void run_dense_f16(const MatmulParams& p, void* stream);
void run_dense_bf16(const MatmulParams& p, void* stream);
void run_weight_grad_f32(const WeightGradParams& p, void* stream);
void run_weight_grad_f16(const WeightGradParams& p, void* stream);
void run_weight_grad_bf16(const WeightGradParams& p, void* stream);

}  // namespace fastops::nm::cuda
