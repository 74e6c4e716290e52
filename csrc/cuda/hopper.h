// Whether a launcher may choose the kernels written for Hopper (sm_90a: TMA, wgmma, clusters).
#pragma once

#include <cstdlib>
#include <cstring>

#include "cuda/launch.h"

namespace fastops::cuda {

// They are compiled in, the device has their instructions, and FASTOPS_SM90=1 asks for them. Where
// it says nothing the default counts, which only a record from hardware may turn on (docs/cuda.md,
// FASTOPS_HOPPER_BY_DEFAULT in cmake/cuda.cmake). Read at every call, so that tests and comparisons
// can switch within a process.
inline bool hopper_enabled([[maybe_unused]] const DeviceInfo& device) {
#ifdef FASTOPS_CUDA_SM90
  const char* value = std::getenv("FASTOPS_SM90");
  const bool asked = value != nullptr && *value != '\0';
  const bool wanted = asked ? std::strcmp(value, "1") == 0 : FASTOPS_HOPPER_BY_DEFAULT != 0;
  return device.major == 9 && wanted;
#else
  return false;
#endif
}

}  // namespace fastops::cuda
