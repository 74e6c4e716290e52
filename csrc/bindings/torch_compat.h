// The only door to torch: the stable-ABI headers (target 2.11) and the few helpers every family's
// torch.cpp needs. Nothing outside csrc/bindings and csrc/<family>/torch.cpp includes this.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "core/check.h"
#include "core/dtype.h"

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

// aten::empty_strided through the C shim: a third of the cost of the boxed dispatcher.
inline Tensor empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, DType dtype,
                            const Tensor& like) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, shim_dtype(dtype), device_type(like), like.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace fastops::binding
