// Whether a launcher may choose the kernels written for Hopper (sm_90a: TMA, wgmma, clusters).
#pragma once

#include <cstdlib>
#include <cstring>

#include "cuda/launch.h"

namespace fastops::cuda {

// They are compiled in, the device has their instructions, and FASTOPS_SM90=1 turns them on: no
// record from hardware speaks for them yet (docs/cuda.md). Read at every call, so that tests and
// comparisons can switch within a process.
inline bool hopper_enabled([[maybe_unused]] const DeviceInfo& device) {
#ifdef FASTOPS_CUDA_SM90
  const char* value = std::getenv("FASTOPS_SM90");
  return device.major == 9 && value != nullptr && std::strcmp(value, "1") == 0;
#else
  return false;
#endif
}

}  // namespace fastops::cuda
