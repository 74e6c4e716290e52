// What torch_plan.cpp and torch_rows.cpp share: the checks of tensors, and the launch of the
// backend they are compiled for. Internal linkage, as they are compiled once per op library.
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

using binding::empty_strided;
using binding::OptTensor;
using binding::Tensor;
using binding::to_dtype;
using Tensors = std::vector<Tensor>;

// The index of a source or destination is a lane of floats in the CPU kernels.
constexpr int64_t kMostTokens = 1 << 24;

inline Tensor empty(std::initializer_list<int64_t> sizes, DType dtype, const Tensor& like) {
  int64_t strides[4], step = 1;
  for (int d = int(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= sizes.begin()[d] > 1 ? sizes.begin()[d] : 1;
  }
  return empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype, like);
}

inline void same_device(const char* op, const Tensor& t, const Tensor& like, const char* name) {
  FASTOPS_CHECK(binding::device_type(t) == binding::device_type(like) &&
                    t.get_device_index() == like.get_device_index(),
                op, ": ", name, " is on another device");
}

inline void check_shape(const char* op, const Tensor& t, std::initializer_list<int64_t> sizes,
                        const char* name) {
  FASTOPS_CHECK(t.dim() == int64_t(sizes.size()), op, ": expected ", name, " of ", sizes.size(),
                " dims, got ", t.dim());
  for (int64_t d = 0; d < t.dim(); ++d)
    FASTOPS_CHECK(t.size(d) == sizes.begin()[d], op, ": expected ", name, ".shape[", d,
                  "] == ", sizes.begin()[d], ", got ", t.size(d));
}

// A contiguous tensor of integers or scores, as the kernels index them.
template <typename T>
T* contiguous(const char* op, const Tensor& t, DType dtype, const Tensor& like,
              std::initializer_list<int64_t> sizes, const char* name) {
  check_shape(op, t, sizes, name);
  same_device(op, t, like, name);
  FASTOPS_CHECK(to_dtype(t.scalar_type(), name) == dtype, op, ": ", name, " has the wrong dtype");
  FASTOPS_CHECK(t.is_contiguous(), op, ": expected a contiguous ", name);
  return static_cast<T*>(t.data_ptr());
}

#ifdef FASTOPS_BACKEND_CUDA
template <typename Params>
void launch(const Params& p, const Tensor& like, void (*run)(const Params&, void*)) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  run(p, stream);
}
#define FASTOPS_RUN(name, p, like) launch(p, like, cuda::name)
#elif defined(FASTOPS_BACKEND_SIMT)
#define FASTOPS_RUN(name, p, like) cuda::emulate(p)
#else
#define FASTOPS_RUN(name, p, like) cpu::name(p)
#endif

}  // namespace
}  // namespace fastops::merge
