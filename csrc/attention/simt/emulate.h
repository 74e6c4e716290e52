// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "attention/attention.h"

namespace fastops::attention::emulated {

// Declares every operand to the checks and runs the launcher.
void forward(ForwardParams& p);
void backward(BackwardParams& p);

}  // namespace fastops::attention::emulated
