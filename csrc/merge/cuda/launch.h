// The CUDA launchers of the merge family. `stream` is a cudaStream_t; the current device is the
// tensors' device. No workspace, no synchronisation.
#pragma once

#include "merge/merge.h"

namespace fastops::merge::cuda {

void match(const MatchParams& p, void* stream);
void plan(const PlanParams& p, void* stream);
void compose(const ComposeParams& p, void* stream);
void select(const SelectParams& p, void* stream);
void merge(const MergeParams& p, void* stream);
void merge_backward(const MergeBackwardParams& p, void* stream);
void unmerge(const UnmergeParams& p, void* stream);

}  // namespace fastops::merge::cuda
