// Moving elements of any floating dtype and stride to and from contiguous scratch in the
// accumulation type: what serves the layouts and dtypes that have no kernel of their own.
#pragma once

#include "core/dtype.h"
#include "cpu/simd.h"

namespace fastops::softmax::cpu {
namespace {

// Calls f<T>() with the C++ type T that stores the floating dtype `t`.
template <typename F>
inline void with_float(DType t, const F& f) {
  switch (t) {
    case DType::f32: return f.template operator()<float>();
    case DType::f64: return f.template operator()<double>();
    case DType::f16: return f.template operator()<fastops::cpu::f16>();
    case DType::bf16: return f.template operator()<fastops::cpu::bf16>();
    default: return;
  }
}

// wide[j] = source[j * stride]
template <typename V, typename T>
inline void widen_as(const T* source, int64_t stride, int64_t n, typename V::Scalar* wide) {
  int64_t j = 0;
  if (stride == 1) {
    for (; j + V::size <= n; j += V::size) V::load(source + j).store(wide + j);
    if (j < n) V::load(source + j, int(n - j)).store(wide + j, int(n - j));
    return;
  }
  for (; j < n; ++j) V::load(source + j * stride, 1).store(wide + j, 1);
}

// to[j] = wide[j], rounded to T.
template <typename V, typename T>
inline void narrow_as(const typename V::Scalar* wide, T* to, int64_t n) {
  int64_t j = 0;
  for (; j + V::size <= n; j += V::size) V::load(wide + j).store(to + j);
  if (j < n) V::load(wide + j, int(n - j)).store(to + j, int(n - j));
}

inline void widen(DType t, const void* source, int64_t begin, int64_t stride, int64_t n, DType wide,
                  void* to) {
  with_float(t, [&]<typename T>() {
    const T* from = static_cast<const T*>(source) + begin * stride;
    if (wide == DType::f64)
      widen_as<fastops::cpu::VecF64>(from, stride, n, static_cast<double*>(to));
    else widen_as<fastops::cpu::VecF32>(from, stride, n, static_cast<float*>(to));
  });
}

inline void narrow(DType wide, const void* from, DType t, void* target, int64_t begin, int64_t n) {
  with_float(t, [&]<typename T>() {
    T* to = static_cast<T*>(target) + begin;
    if (wide == DType::f64)
      narrow_as<fastops::cpu::VecF64>(static_cast<const double*>(from), to, n);
    else narrow_as<fastops::cpu::VecF32>(static_cast<const float*>(from), to, n);
  });
}

// Whether element j of a floating array is -inf.
inline bool is_minus_infinity(DType t, const void* data, int64_t j) {
  double value = 0;
  widen(t, data, j, 1, 1, DType::f64, &value);
  return value == -__builtin_inf();
}

}  // namespace
}  // namespace fastops::softmax::cpu
