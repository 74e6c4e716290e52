// The only door to torch: the stable-ABI headers (target 2.11) and the few helpers every family's
// torch.cpp needs. Nothing outside csrc/bindings and csrc/<family>/torch.cpp includes this.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>

#include "core/check.h"
#include "core/dtype.h"
#include "cpu/fresh_memory.h"

// Declared by torch's shim only under USE_CUDA; CPU torch does not have it, which is why the CUDA
// implementations live in a library of their own.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fastops::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

inline DType to_dtype(ScalarType t, const char* what) {
  switch (t) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Bool: return DType::boolean;
    case ScalarType::Byte: return DType::u8;
    case ScalarType::Int: return DType::i32;
    case ScalarType::Long: return DType::i64;
    default: fail(what, ": dtype not supported");
  }
}

inline ScalarType to_scalar_type(DType t) {
  switch (t) {
    case DType::f32: return ScalarType::Float;
    case DType::f64: return ScalarType::Double;
    case DType::f16: return ScalarType::Half;
    case DType::bf16: return ScalarType::BFloat16;
    case DType::boolean: return ScalarType::Bool;
    case DType::u8: return ScalarType::Byte;
    case DType::i32: return ScalarType::Int;
    case DType::i64: return ScalarType::Long;
  }
  fail("unknown dtype");
}

inline int32_t shim_dtype(DType t) {
  switch (t) {
    case DType::f32: return aoti_torch_dtype_float32();
    case DType::f64: return aoti_torch_dtype_float64();
    case DType::f16: return aoti_torch_dtype_float16();
    case DType::bf16: return aoti_torch_dtype_bfloat16();
    case DType::boolean: return aoti_torch_dtype_bool();
    case DType::u8: return aoti_torch_dtype_uint8();
    case DType::i32: return aoti_torch_dtype_int32();
    case DType::i64: return aoti_torch_dtype_int64();
  }
  fail("unknown dtype");
}

inline int32_t device_type(const Tensor& t) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

// A tensor just allocated, of so many elements in memory, as the backend wants it.
inline Tensor fresh(Tensor t, [[maybe_unused]] int64_t elements, [[maybe_unused]] DType dtype) {
#if !defined(FASTOPS_BACKEND_CUDA) && !defined(FASTOPS_BACKEND_SIMT)
  const int64_t bytes = elements * int64_t(size_of(dtype));
  if (bytes >= cpu::kHugePagesFrom) cpu::ask_for_huge_pages(t.data_ptr(), bytes);
#endif
  return t;
}

// aten::empty_strided through the C shim: a third of the cost of the boxed dispatcher.
inline Tensor empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, DType dtype,
                            const Tensor& like) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, shim_dtype(dtype), device_type(like), like.get_device_index(), &handle));
  int64_t last = 0;
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] == 0) return Tensor(handle);
    last += (sizes[d] - 1) * strides[d];
  }
  return fresh(Tensor(handle), last + 1, dtype);
}

// A contiguous tensor of a few dims.
inline Tensor empty(std::initializer_list<int64_t> sizes, DType dtype, const Tensor& like) {
  int64_t strides[4], step = 1;
  for (int d = int(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = step;
    step *= sizes.begin()[d] > 1 ? sizes.begin()[d] : 1;
  }
  return empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtype, like);
}

inline void check_device(const char* op, const Tensor& t, const Tensor& like, const char* name) {
  FASTOPS_CHECK(
      device_type(t) == device_type(like) && t.get_device_index() == like.get_device_index(), op,
      ": ", name, " is on another device");
}

inline void check_shape(const char* op, const Tensor& t, std::initializer_list<int64_t> sizes,
                        const char* name) {
  FASTOPS_CHECK(t.dim() == int64_t(sizes.size()), op, ": expected ", name, " of ", sizes.size(),
                " dims, got ", t.dim());
  for (int64_t d = 0; d < t.dim(); ++d)
    FASTOPS_CHECK(t.size(d) == sizes.begin()[d], op, ": expected ", name, ".shape[", d,
                  "] == ", sizes.begin()[d], ", got ", t.size(d));
}

// Shape, device and dtype.
inline void check_tensor(const char* op, const Tensor& t, DType dtype, const Tensor& like,
                         std::initializer_list<int64_t> sizes, const char* name) {
  check_shape(op, t, sizes, name);
  check_device(op, t, like, name);
  FASTOPS_CHECK(to_dtype(t.scalar_type(), name) == dtype, op, ": ", name, " has the wrong dtype");
}

// The elements of a contiguous tensor, as the kernels index them.
template <typename T>
T* contiguous(const char* op, const Tensor& t, DType dtype, const Tensor& like,
              std::initializer_list<int64_t> sizes, const char* name) {
  check_tensor(op, t, dtype, like, sizes, name);
  FASTOPS_CHECK(t.is_contiguous(), op, ": expected a contiguous ", name);
  return static_cast<T*>(t.data_ptr());
}

// FASTOPS_RUN(name, like, ...) calls the launcher `name` of the backend that the file is compiled
// for: cpu::name(...), emulated::name(...), or cuda::name(..., stream) with the current stream of
// the device of `like`, which is the current device meanwhile. FASTOPS_RUN_WITH_WORKSPACE(name,
// like, p) first sets p.workspace where the CUDA launcher asks for memory.
#if defined(FASTOPS_BACKEND_CUDA)
template <typename Body>
auto on_stream_of(const Tensor& like, const Body& body) {
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return body(stream);
}
#define FASTOPS_RUN(name, like, ...)     \
  ::fastops::binding::on_stream_of(like, \
                                   [&](void* stream) { return cuda::name(__VA_ARGS__, stream); })
template <typename Params>
void launch_with_workspace(Params& p, const Tensor& like, size_t (*workspace)(const Params&),
                           void (*run)(const Params&, void*)) {
  on_stream_of(like, [&](void* stream) {
    OptTensor scratch;  // freed into torch's stream-ordered allocator after the launch
    if (const auto bytes = int64_t(workspace(p))) {
      scratch = empty({(bytes + 7) / 8}, DType::f64, like);
      p.workspace = scratch->data_ptr();
    }
    run(p, stream);
  });
}
#define FASTOPS_RUN_WITH_WORKSPACE(name, like, p) \
  ::fastops::binding::launch_with_workspace(p, like, cuda::name##_workspace, cuda::name)
#elif defined(FASTOPS_BACKEND_SIMT)
#define FASTOPS_RUN(name, like, ...) emulated::name(__VA_ARGS__)
#else
#define FASTOPS_RUN(name, like, ...) cpu::name(__VA_ARGS__)
#endif
#ifndef FASTOPS_RUN_WITH_WORKSPACE
#define FASTOPS_RUN_WITH_WORKSPACE FASTOPS_RUN
#endif

}  // namespace fastops::binding
