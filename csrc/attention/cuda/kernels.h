// The passes by element type, each compiled in a file of its own.
#pragma once

#include "attention/attention.h"
#include "attention/cuda/heuristics.h"
#include "attention/cuda/order.h"
#include "core/check.h"
#include "core/dtype.h"
#include "cuda/hopper.h"

namespace fastops::attention::cuda {

void forward_f32(const ForwardParams& p, void* stream);
void forward_f16(const ForwardParams& p, void* stream);
void forward_bf16(const ForwardParams& p, void* stream);
void backward_f32(const BackwardParams& p, void* stream);
void backward_f16(const BackwardParams& p, void* stream);
void backward_bf16(const BackwardParams& p, void* stream);

#ifdef FASTOPS_CUDA_SM90
// Defined in files that only sm_90 compiles.
void forward_hopper_f16(const ForwardParams& p, const HopperCut& cut, void* stream);
void forward_hopper_bf16(const ForwardParams& p, const HopperCut& cut, void* stream);
void backward_hopper_f16(const BackwardParams& p, const HopperCut& cut, bool by_key, void* stream);
void backward_hopper_bf16(const BackwardParams& p, const HopperCut& cut, bool by_key, void* stream);
#else
inline void forward_hopper_f16(const ForwardParams&, const HopperCut&, void*) {
  fail("fastops.block_sparse_attention: this build has no sm_90 kernels");
}
inline void forward_hopper_bf16(const ForwardParams& p, const HopperCut& cut, void* stream) {
  forward_hopper_f16(p, cut, stream);
}
inline void backward_hopper_f16(const BackwardParams&, const HopperCut&, bool, void*) {
  fail("fastops.block_sparse_attention: this build has no sm_90 kernels");
}
inline void backward_hopper_bf16(const BackwardParams& p, const HopperCut& cut, bool by_key,
                                 void* stream) {
  backward_hopper_f16(p, cut, by_key, stream);
}
#endif

// Whether 16-byte copies reach every row of 16-bit elements.
inline bool aligned_rows(const Heads& t, int64_t channels) {
  bool aligned = channels % 8 == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  for (const int64_t stride : t.stride) aligned = aligned && stride % 8 == 0;
  return aligned;
}
inline bool aligned_rows(const Problem& p) {
  return aligned_rows(p.q, p.head_dim) && aligned_rows(p.k, p.head_dim) &&
         aligned_rows(p.v, p.value_dim);
}

// Whether a tensor map can be made of it: strides are positive where they are used.
inline bool tma_addresses(const Heads& t, int64_t batch, int64_t heads, int64_t length) {
  const int64_t size[3] = {batch, heads, length};
  bool possible = true;
  for (int i = 0; i < 3; ++i)
    possible = possible && size[i] > 0 && size[i] < int64_t{1} << 31 &&
               (size[i] == 1 || (t.stride[i] > 0 && t.stride[i] < int64_t{1} << 38));
  return possible;
}
inline bool tma_addresses(const Problem& p) {
  return tma_addresses(p.q, p.batch, p.heads, p.seq_q) &&
         tma_addresses(p.k, p.batch, p.kv_heads, p.seq_kv) &&
         tma_addresses(p.v, p.batch, p.kv_heads, p.seq_kv);
}

// Which kernel the forward takes, and its cut.
struct ForwardPlan {
  Kernel kernel;
  HopperCut cut;
};
inline ForwardPlan plan_forward(const ForwardParams& p) {
  const bool aligned = aligned_rows(p) && aligned_rows(p.out, p.value_dim);
  const bool hopper = fastops::cuda::hopper_enabled(fastops::cuda::device_info());
  const HopperCut cut = plan_hopper_forward(p);
  return {plan_forward_kernel(p.dtype, aligned, hopper && tma_addresses(p), cut), cut};
}

}  // namespace fastops::attention::cuda
