// The passes by element type, each compiled in a file of its own.
#pragma once

#include "attention/attention.h"
#include "core/dtype.h"

namespace fastops::attention::cuda {

void forward_f32(const ForwardParams& p, void* stream);
void forward_f16(const ForwardParams& p, void* stream);
void forward_bf16(const ForwardParams& p, void* stream);
void backward_f32(const BackwardParams& p, void* stream);
void backward_f16(const BackwardParams& p, void* stream);
void backward_bf16(const BackwardParams& p, void* stream);

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

}  // namespace fastops::attention::cuda
