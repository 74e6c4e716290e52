// What torch_plan.cpp and torch_rows.cpp share.
#pragma once

#include <vector>

#include "bindings/torch_compat.h"
#include "merge/merge.h"
#ifdef FASTOPS_BACKEND_SIMT
#include "merge/simt/emulate.h"
#elif defined(FASTOPS_BACKEND_CUDA)
#include "merge/cuda/launch.h"
#endif

namespace fastops::merge {
namespace {

using binding::check_device;
using binding::check_shape;
using binding::contiguous;
using binding::empty;
using binding::empty_strided;
using binding::OptTensor;
using binding::Tensor;
using binding::to_dtype;
using Tensors = std::vector<Tensor>;

// The index of a source or destination is a lane of floats in the CPU kernels.
constexpr int64_t kMostTokens = 1 << 24;

}  // namespace
}  // namespace fastops::merge
