// The CUDA launchers of the relatives on the host, for tests (csrc/simt).
#pragma once

#include "softmax/relatives.h"

namespace fastops::softmax::cuda {

void emulate(MapParams& p);
void emulate(TopkParams& p);

}  // namespace fastops::softmax::cuda
