// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "merge/merge.h"

namespace fastops::merge::cuda {

// Declares every operand to the checks and runs the launcher.
void emulate(const MatchParams& p);
void emulate(const PlanParams& p);
void emulate(const ComposeParams& p);
void emulate(const SelectParams& p);
void emulate(const MergeParams& p);
void emulate(const MergeBackwardParams& p);
void emulate(const UnmergeParams& p);

}  // namespace fastops::merge::cuda
