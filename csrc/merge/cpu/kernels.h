// The CPU kernels of the merge family that are compiled once per instruction set; plan.cpp works on
// integers and is compiled once.
#pragma once

#include "merge/merge.h"

namespace fastops::merge::cpu {

#define FASTOPS_MERGE_KERNELS(isa)                   \
  namespace isa {                                    \
  void match(const MatchParams& p, bool screen);     \
  void merge(const MergeParams& p);                  \
  void merge_backward(const MergeBackwardParams& p); \
  void unmerge(const UnmergeParams& p);              \
  }
FASTOPS_MERGE_KERNELS(portable)
FASTOPS_MERGE_KERNELS(avx2)
FASTOPS_MERGE_KERNELS(avx512)
#undef FASTOPS_MERGE_KERNELS

}  // namespace fastops::merge::cpu
