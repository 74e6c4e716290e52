// The element types fastops kernels know. No torch, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastops {

enum class DType : int8_t { f32, f64, f16, bf16, boolean, u8, i32, i64 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::boolean:
    case DType::u8: return 1;
  }
  return 0;
}

constexpr bool is_floating(DType t) {
  return t == DType::f32 || t == DType::f64 || t == DType::f16 || t == DType::bf16;
}

// What a family accumulates in: fp64 only when fp64 is asked for, fp32 otherwise, never half.
constexpr DType accumulator(DType in, DType out) {
  return in == DType::f64 || out == DType::f64 ? DType::f64 : DType::f32;
}

}  // namespace fastops
