// The CUDA launchers of the relatives on the host, for tests (csrc/simt).
#pragma once

#include "softmax/relatives.h"

namespace fastops::softmax::emulated {

void map(MapParams& p);
void topk(TopkParams& p);

}  // namespace fastops::softmax::emulated
