// Element types of the host code that is compiled once: dispatch and scalar access.
#pragma once

#include "cpu/half.h"
#include "nm/nm.h"

namespace fastops::nm::cpu {
namespace {

using fastops::cpu::bf16;
using fastops::cpu::f16;
using fastops::cpu::to_float;

inline float to_float(float f) { return f; }

template <typename F>
void with_dtype(DType t, F f) {
  switch (t) {
    case DType::f16: return f(f16{});
    case DType::bf16: return f(bf16{});
    default: return f(float{});
  }
}

}  // namespace
}  // namespace fastops::nm::cpu
