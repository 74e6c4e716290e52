// What TMA needs to know of a tensor (csrc/cuda/ptx/tma.cuh), made on the host and passed to the
// kernel as `const __grid_constant__ CUtensorMap`.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/check.h"
#include "core/dtype.h"
#include "cuda/launch.h"
#include "cuda/ptx/wgmma_descriptor.cuh"
#ifdef SIMT_HOST
#include "simt/tensor_map.h"
#endif

namespace fastops::cuda {

// Dimensions fastest first. Elements outside the tensor read as 0 and are not written.
struct TensorMapSpec {
  const void* data;  // 16-byte aligned
  DType dtype;       // f32, f16, bf16, i32
  int dims;          // 2 to 5
  int64_t size[5];   // elements
  int64_t
      stride[5];  // bytes, multiples of 16; [0] is not read: the fastest dimension is contiguous
  int box[5];     // elements that one copy moves, at most 256 in any dimension
  ptx::Swizzle swizzle = ptx::Swizzle::none;  // other: a row of the box is as wide as it
};

inline int swizzle_bytes(ptx::Swizzle swizzle) {
  switch (swizzle) {
    case ptx::Swizzle::none: return 16;
    case ptx::Swizzle::b32: return 32;
    case ptx::Swizzle::b64: return 64;
    case ptx::Swizzle::b128: return 128;
  }
  return 16;
}

// Bytes one copy moves, outside elements included: what an mbarrier is to expect.
inline unsigned box_bytes(const TensorMapSpec& spec) {
  int64_t elements = 1;
  for (int d = 0; d < spec.dims; ++d) elements *= spec.box[d];
  return static_cast<unsigned>(elements * static_cast<int64_t>(size_of(spec.dtype)));
}

inline void require_encodable(const TensorMapSpec& spec) {
  const auto element = static_cast<int64_t>(size_of(spec.dtype));
  FASTOPS_CHECK(spec.dtype == DType::f32 || spec.dtype == DType::f16 || spec.dtype == DType::bf16 ||
                    spec.dtype == DType::i32,
                "tensor map: this dtype has none");
  FASTOPS_CHECK(2 <= spec.dims && spec.dims <= 5, "tensor map: 2 to 5 dimensions");
  FASTOPS_CHECK(reinterpret_cast<uintptr_t>(spec.data) % 16 == 0,
                "tensor map: the tensor must start at a multiple of 16 bytes");
  for (int d = 0; d < spec.dims; ++d) {
    FASTOPS_CHECK(0 < spec.size[d] && spec.size[d] <= (int64_t{1} << 32),
                  "tensor map: sizes are 1 to 2^32");
    FASTOPS_CHECK(0 < spec.box[d] && spec.box[d] <= 256, "tensor map: a box has 1 to 256 elements");
    FASTOPS_CHECK(d == 0 || (spec.stride[d] > 0 && spec.stride[d] % 16 == 0 &&
                             spec.stride[d] < (int64_t{1} << 40)),
                  "tensor map: strides are positive multiples of 16 bytes below 2^40");
  }
  const int64_t row = spec.box[0] * element;
  FASTOPS_CHECK(row % 16 == 0, "tensor map: a row of the box is a multiple of 16 bytes");
  FASTOPS_CHECK(spec.swizzle == ptx::Swizzle::none || row == swizzle_bytes(spec.swizzle),
                "tensor map: with a swizzle, a row of the box is as wide as it");
}

#ifdef SIMT_HOST

inline CUtensorMap make_tensor_map(const TensorMapSpec& spec) {
  require_encodable(spec);
  simt::TensorMap map;
  map.data = spec.data;
  map.element_bytes = static_cast<uint8_t>(size_of(spec.dtype));
  map.dims = static_cast<uint8_t>(spec.dims);
  map.swizzle_bytes = static_cast<uint8_t>(swizzle_bytes(spec.swizzle));
  for (int d = 0; d < spec.dims; ++d) {
    map.last[d] = static_cast<uint32_t>(spec.size[d] - 1);
    map.box[d] = static_cast<uint16_t>(spec.box[d]);
    if (d > 0) map.stride[d - 1] = static_cast<uint64_t>(spec.stride[d]);
  }
  return simt::pack(map);
}

#else

// cuTensorMapEncodeTiled, found at run time: the driver library is not linked.
inline CUtensorMap make_tensor_map(const TensorMapSpec& spec) {
  require_encodable(spec);
  static void* const entry = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &status),
          "cuTensorMapEncodeTiled");
    return found;
  }();
  FASTOPS_CHECK(entry != nullptr, "tensor map: this driver has no cuTensorMapEncodeTiled");
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  if (spec.dtype == DType::f16) type = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (spec.dtype == DType::bf16) type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (spec.dtype == DType::i32) type = CU_TENSOR_MAP_DATA_TYPE_INT32;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
  if (spec.swizzle == ptx::Swizzle::b32) swizzle = CU_TENSOR_MAP_SWIZZLE_32B;
  if (spec.swizzle == ptx::Swizzle::b64) swizzle = CU_TENSOR_MAP_SWIZZLE_64B;
  if (spec.swizzle == ptx::Swizzle::b128) swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5], steps[5];
  for (int d = 0; d < spec.dims; ++d) {
    sizes[d] = static_cast<cuuint64_t>(spec.size[d]);
    box[d] = static_cast<cuuint32_t>(spec.box[d]);
    steps[d] = 1;
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(spec.stride[d]);
  }
  CUtensorMap map;
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  const CUresult result =
      encode(&map, type, static_cast<cuuint32_t>(spec.dims), const_cast<void*>(spec.data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FASTOPS_CHECK(result == CUDA_SUCCESS, "tensor map: cuTensorMapEncodeTiled says ", int(result));
  return map;
}

#endif

}  // namespace fastops::cuda
