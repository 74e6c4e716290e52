// What every kernel file includes: the CUDA runtime, or, under SIMT_HOST, the host emulation that
// runs the same source thread by thread in tests (csrc/simt).
#pragma once

#ifdef SIMT_HOST
#include "simt/simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The dynamic shared memory of a block, as bytes.
#define FASTOPS_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif
