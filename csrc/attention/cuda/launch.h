// The CUDA launchers of the attention family. `stream` is a cudaStream_t; the current device is the
// tensors' device. No workspace but the params', no synchronisation.
#pragma once

#include "attention/attention.h"

namespace fastops::attention::cuda {

// Bytes of the params' workspace.
size_t forward_workspace(const ForwardParams& p);
size_t backward_workspace(const BackwardParams& p);

void forward(const ForwardParams& p, void* stream);
void backward(const BackwardParams& p, void* stream);

}  // namespace fastops::attention::cuda
