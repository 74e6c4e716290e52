// Host bodies of csrc/cuda/ptx/math.cuh: the flush to zero is kept, the error of the MUFU unit is
// not imitated.
#pragma once

#include <cmath>

#include "simt/threads.h"

namespace simt {

SIMT_INLINE float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE float ex2(float x) { return simt::flush(std::exp2(simt::flush(x))); }
SIMT_INLINE float rcp(float x) { return simt::flush(1.0f / simt::flush(x)); }

}  // namespace fastops::ptx
