// Host bodies of csrc/cuda/ptx/wgmma.cuh (csrc/simt/wgmma.cpp). Each warp computes its 16 rows,
// when it waits (late) or at once (early); sums as in mma.h.
#pragma once

#include "simt/ptx/mma.h"

namespace simt {

struct WgmmaShape {
  Operand type;
  int n;
  int selector;  // -1: a is dense
  bool a_mn_major, b_mn_major;
};
// a_registers: null where a is in shared memory.
SIMT_CALL void wgmma(WgmmaShape shape, float* d, const unsigned* a_registers, uint64_t a,
                     uint64_t b, unsigned metadata, bool accumulate);
SIMT_CALL void wgmma_fence();
SIMT_CALL void wgmma_commit();
SIMT_CALL void wgmma_wait(int pending_groups);

template <>
inline constexpr Operand kOperand<fastops::ptx::Tf32> = Operand::tf32;

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void wgmma_fence() { simt::wgmma_fence(); }
SIMT_INLINE void wgmma_commit() { simt::wgmma_commit(); }
template <int kPending>
SIMT_INLINE void wgmma_wait() {
  simt::wgmma_wait(kPending);
}
template <int kCount>
SIMT_INLINE void wgmma_hold(float (&)[kCount]) {}

template <typename T, int kN, Major kMajorA = Major::k, Major kMajorB = Major::k>
SIMT_INLINE void wgmma_ss(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(!std::is_same_v<T, Tf32> || (kMajorA == Major::k && kMajorB == Major::k));
  static_assert(8 <= kN && kN <= 256 && kN % 8 == 0);
  simt::wgmma({simt::kOperand<T>, kN, -1, kMajorA == Major::mn, kMajorB == Major::mn}, d, nullptr,
              a, b, 0, accumulate);
}

template <typename T, int kN, Major kMajorB = Major::k>
SIMT_INLINE void wgmma_rs(float (&d)[kN / 2], const unsigned (&a)[4], uint64_t b,
                          bool accumulate = true) {
  static_assert(!std::is_same_v<T, Tf32> || kMajorB == Major::k);
  static_assert(8 <= kN && kN <= 256 && kN % 8 == 0);
  simt::wgmma({simt::kOperand<T>, kN, -1, false, kMajorB == Major::mn}, d, a, 0, b, 0, accumulate);
}

template <typename T, int kN, int kSelector, Major kMajorB = Major::k>
SIMT_INLINE void wgmma_sp_ss(float (&d)[kN / 2], uint64_t a, uint64_t b, unsigned metadata,
                             bool accumulate = true) {
  static_assert(kSelector == 0 || kSelector == 1);
  static_assert(8 <= kN && kN <= 256 && kN % 8 == 0);
  simt::wgmma({simt::kOperand<T>, kN, kSelector, false, kMajorB == Major::mn}, d, nullptr, a, b,
              metadata, accumulate);
}

template <typename T, int kN, int kSelector, Major kMajorB = Major::k>
SIMT_INLINE void wgmma_sp_rs(float (&d)[kN / 2], const unsigned (&a)[4], uint64_t b,
                             unsigned metadata, bool accumulate = true) {
  static_assert(kSelector == 0 || kSelector == 1);
  static_assert(8 <= kN && kN <= 256 && kN % 8 == 0);
  simt::wgmma({simt::kOperand<T>, kN, kSelector, false, kMajorB == Major::mn}, d, a, 0, b, metadata,
              accumulate);
}

}  // namespace fastops::ptx
