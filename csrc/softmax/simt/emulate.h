// The CUDA launchers of the family on the host, for tests (csrc/simt).
#pragma once

#include "softmax/softmax.h"

namespace fastops::softmax::emulated {

// Declares every operand to the checks, gives the launcher its workspace and runs it.
void forward(ForwardParams& p);
void backward(BackwardParams& p);

}  // namespace fastops::softmax::emulated
