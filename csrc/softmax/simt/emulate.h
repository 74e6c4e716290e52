// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "softmax/softmax.h"

namespace fastops::softmax::cuda {

// Declares every operand to the checks, gives the launcher its workspace and runs it.
void emulate(ForwardParams& p);
void emulate(BackwardParams& p);

}  // namespace fastops::softmax::cuda
