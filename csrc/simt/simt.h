// What kernel files include in place of cuda_runtime.h when they are compiled for the host
// (-DSIMT_HOST): NVIDIA's own vector, half and bfloat16 types, and the CUDA names a kernel uses.
//
// Each CUDA thread is a fiber; a launch runs the grid block by block on the calling thread.
// Memory is reached through plain C++ loads and stores: kernel files are compiled with
// -fsanitize=thread and csrc/simt/hooks.cpp answers the sanitizer's callbacks with the checks of
// csrc/simt/memory.h. docs/simt.md says how to write a kernel for it.
#pragma once

#ifndef SIMT_HOST
#error "simt/simt.h is for the host build of kernels; device code includes cuda_runtime.h"
#endif

#include <vector_functions.h>
#include <vector_types.h>

// NVIDIA's conversions are `static __attribute__((unused))` under g++. They must be inlined: the
// sanitizer does not see the store in `*p = call()` when the call returns a class.
#define unused always_inline
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#undef unused

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __cluster_dims__
#define __global__
#define __device__
#define __host__
// Function-local in kernels. The module's thread-local segment is the static shared memory: it
// exists in templates too, and plain pointers into it work.
#define __shared__ static thread_local
#define __constant__ static const
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)

#include "simt/launch.h"
#include "simt/math.h"
#include "simt/threads.h"

// The dynamic shared memory of a block, as bytes, 1024-aligned.
#define FASTOPS_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::dynamic_shared()

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())
inline constexpr int warpSize = 32;
