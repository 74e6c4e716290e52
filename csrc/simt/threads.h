// Thread indices, barriers, shuffles, votes and atomics under their CUDA names.
//
// A collective finds its call site from its return address, so every function a kernel calls here
// is either a runtime function or inlined into its caller.
#pragma once

#include <vector_types.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#define SIMT_INLINE inline __attribute__((always_inline))
// A runtime function: a call the compiler may not clone, whose return address is its call site.
#define SIMT_CALL __attribute__((noinline, noclone))

namespace simt {

// Constant within a fiber, so the compiler may keep them.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_dim();
__attribute__((const)) dim3 grid_dim();
__attribute__((const)) unsigned char* dynamic_shared();

enum class Shuffle : int { index, up, down, butterfly };
enum class Vote : int { ballot, any, all };
enum class Reduce : int { add, min, max, bit_and, bit_or, bit_xor };

SIMT_CALL void sync_block();
SIMT_CALL int sync_block_count(int predicate);  // threads whose predicate is not 0
SIMT_CALL void sync_warp(unsigned mask);
SIMT_CALL uint64_t shuffle(Shuffle mode, unsigned mask, uint64_t bits, int lane, int width);
SIMT_CALL unsigned vote(Vote kind, unsigned mask, int predicate);
SIMT_CALL unsigned match_any(unsigned mask, uint64_t bits);
SIMT_CALL int64_t reduce(Reduce kind, unsigned mask, int64_t value);
SIMT_CALL unsigned active_mask();
SIMT_CALL void
fence();  // __threadfence: memory is sequentially consistent, but what orders it counts
// Checks an atomic access of `bytes` at p and orders it against other atomics.
SIMT_CALL void atomic_access(void* p, int bytes);

template <typename T>
SIMT_INLINE uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(uint64_t, value);
  else if constexpr (sizeof(T) == 4) return __builtin_bit_cast(uint32_t, value);
  else return __builtin_bit_cast(uint16_t, value);
}

template <typename T>
SIMT_INLINE T from_bits(uint64_t bits) {
  if constexpr (sizeof(T) == 8) return __builtin_bit_cast(T, bits);
  else if constexpr (sizeof(T) == 4) return __builtin_bit_cast(T, static_cast<uint32_t>(bits));
  else return __builtin_bit_cast(T, static_cast<uint16_t>(bits));
}

}  // namespace simt

SIMT_INLINE void __syncthreads() { simt::sync_block(); }
SIMT_INLINE int __syncthreads_count(int predicate) { return simt::sync_block_count(predicate); }
SIMT_INLINE int __syncthreads_or(int predicate) { return simt::sync_block_count(predicate) != 0; }
SIMT_INLINE int __syncthreads_and(int predicate) { return simt::sync_block_count(!predicate) == 0; }
SIMT_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }

template <typename T>
SIMT_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::index, mask, simt::to_bits(value), lane, width));
}
template <typename T>
SIMT_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::up, mask, simt::to_bits(value), int(delta), width));
}
template <typename T>
SIMT_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::down, mask, simt::to_bits(value), int(delta), width));
}
template <typename T>
SIMT_INLINE T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return simt::from_bits<T>(
      simt::shuffle(simt::Shuffle::butterfly, mask, simt::to_bits(value), lane_mask, width));
}

SIMT_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::vote(simt::Vote::ballot, mask, predicate);
}
SIMT_INLINE int __any_sync(unsigned mask, int predicate) {
  return int(simt::vote(simt::Vote::any, mask, predicate));
}
SIMT_INLINE int __all_sync(unsigned mask, int predicate) {
  return int(simt::vote(simt::Vote::all, mask, predicate));
}
template <typename T>
SIMT_INLINE unsigned __match_any_sync(unsigned mask, T value) {
  return simt::match_any(mask, simt::to_bits(value));
}
SIMT_INLINE unsigned __activemask() { return simt::active_mask(); }

#define SIMT_REDUCE(name, kind)                                       \
  template <typename T>                                               \
  SIMT_INLINE T __reduce_##name##_sync(unsigned mask, T value) {      \
    static_assert(sizeof(T) == 4 && std::is_integral_v<T>);           \
    return T(simt::reduce(simt::Reduce::kind, mask, int64_t(value))); \
  }
SIMT_REDUCE(add, add)
SIMT_REDUCE(min, min)
SIMT_REDUCE(max, max)
SIMT_REDUCE(and, bit_and)
SIMT_REDUCE(or, bit_or)
SIMT_REDUCE(xor, bit_xor)
#undef SIMT_REDUCE

SIMT_INLINE void __threadfence() { simt::fence(); }
SIMT_INLINE void __threadfence_block() {}

// Atomics. Only one fiber runs at a time, so the update itself is plain; it is done where the
// sanitizer does not look, because atomic_access has checked it already.
#define SIMT_ATOMIC(name, expression)                                        \
  template <typename T>                                                      \
  SIMT_INLINE T name(T* p, std::type_identity_t<T> value) {                  \
    simt::atomic_access(p, sizeof(T));                                       \
    return [](T* at, T v) __attribute__((noinline, no_sanitize("thread"))) { \
      const T old = *at;                                                     \
      *at = (expression);                                                    \
      return old;                                                            \
    }(p, value);                                                             \
  }
SIMT_ATOMIC(atomicAdd, T(old + v))
SIMT_ATOMIC(atomicSub, T(old - v))
SIMT_ATOMIC(atomicMax, old < v ? v : old)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicExch, v)
SIMT_ATOMIC(atomicAnd, T(old& v))
SIMT_ATOMIC(atomicOr, T(old | v))
SIMT_ATOMIC(atomicXor, T(old ^ v))
#undef SIMT_ATOMIC

template <typename T>
SIMT_INLINE T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  simt::atomic_access(p, sizeof(T));
  return [](T* at, T c, T v) __attribute__((noinline, no_sanitize("thread"))) {
    const T old = *at;
    if (old == c) *at = v;
    return old;
  }(p, compare, value);
}
