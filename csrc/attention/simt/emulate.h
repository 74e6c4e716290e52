// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "attention/attention.h"

namespace fastops::attention::cuda {

// Declares every operand to the checks and runs the launcher.
void emulate(const ForwardParams& p);
void emulate(const BackwardParams& p);

}  // namespace fastops::attention::cuda
