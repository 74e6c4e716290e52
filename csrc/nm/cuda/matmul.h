// The products by element type, each compiled in a file of its own.
#pragma once

#include "nm/cuda/heuristics.h"

namespace fastops::nm::cuda {

// For a weight in sparse_tiles, on the current device.
SparsePlan plan_of(const MatmulParams& p);
// As far as SparseKernel::wgmma goes, without the sum of the splits; sm_90a only.
void run_wgmma_f16(const MatmulParams& p, const SparsePlan& plan, void* stream);
void run_wgmma_bf16(const MatmulParams& p, const SparsePlan& plan, void* stream);

void run_sparse_f16(const MatmulParams& p, void* stream);
void run_sparse_bf16(const MatmulParams& p, void* stream);

void run_dense_f32(const MatmulParams& p, void* stream);
void run_dense_f16(const MatmulParams& p, void* stream);
void run_dense_bf16(const MatmulParams& p, void* stream);
void run_weight_grad_f32(const WeightGradParams& p, void* stream);
void run_weight_grad_f16(const WeightGradParams& p, void* stream);
void run_weight_grad_bf16(const WeightGradParams& p, void* stream);

}  // namespace fastops::nm::cuda
