// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "merge/merge.h"

namespace fastops::merge::emulated {

// Declares every operand to the checks and runs the launcher.
void match(const MatchParams& p);
void plan(const PlanParams& p);
void compose(const ComposeParams& p);
void select(const SelectParams& p);
void merge(const MergeParams& p);
void merge_backward(const MergeBackwardParams& p);
void unmerge(const UnmergeParams& p);

}  // namespace fastops::merge::emulated
