// The CPU kernels of block-sparse attention, compiled once per instruction set.
#pragma once

#include "attention/cpu/plan.h"

namespace fastops::attention::cpu {

#define FASTOPS_ATTENTION_KERNELS(isa)                                         \
  namespace isa {                                                              \
  extern const Unit kUnit;                                   /* of bf16 */     \
  void pack(const PackJob& job, int64_t begin, int64_t end); /* of blocks */   \
  void forward(const ForwardPlan& plan, const Worker& worker);                 \
  void backward_delta(const BackwardParams& p, int64_t begin, int64_t end);    \
  void backward_queries(const BackwardPlan& plan, const Worker& worker);       \
  void backward_keys(const BackwardPlan& plan, const Worker& worker);          \
  void join_query_parts(const BackwardPlan& plan, int64_t begin, int64_t end); \
  }
FASTOPS_ATTENTION_KERNELS(portable)
FASTOPS_ATTENTION_KERNELS(avx2)
FASTOPS_ATTENTION_KERNELS(avx512)
FASTOPS_ATTENTION_KERNELS(amx)  // bf16 only
#undef FASTOPS_ATTENTION_KERNELS

}  // namespace fastops::attention::cpu
