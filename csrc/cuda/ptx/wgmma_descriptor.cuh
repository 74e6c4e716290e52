// How wgmma finds an operand in shared memory: the 64-bit matrix descriptor of the PTX manual. No
// instruction, the same on the host.
//
// Shared memory holds chunks of 16 bytes. With W = 1, 2, 4, 8 for Swizzle::none, b32, b64, b128:
//   K-major   rows (of a: m, of b: n) are 16 W bytes apart in groups of 8, groups `stride` bytes
//   apart;
//             the chunks of a row lie side by side (none: `leading` bytes apart).
//   MN-major  the 8 rows of a group of k are 16 W bytes apart and hold 8 W elements of m or n; the
//   next
//             8 W are `leading` bytes on (none: `stride`), the next group of k `stride` bytes
//             (none: `leading`). 16-bit types only.
// Then, at every address, the low log2(W) bits of chunk number (bits 4 and up) are exclusive-ored
// with bits 7 and up, as TMA writes them. A tile therefore starts at a multiple of 128 W bytes; a
// descriptor may start inside a row, to advance along k.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace fastops::ptx {

enum class Swizzle : int { none = 0, b128 = 1, b64 = 2, b32 = 3 };  // as the descriptor has them
enum class Major : int { k = 0, mn = 1 };

// All in bytes, multiples of 16; `shared_address` of smem_addr, below 256 KB.
__host__ __device__ __forceinline__ constexpr uint64_t wgmma_descriptor(unsigned shared_address,
                                                                        unsigned leading,
                                                                        unsigned stride,
                                                                        Swizzle swizzle) {
  return uint64_t(shared_address & 0x3ffffu) >> 4 | uint64_t(leading >> 4) << 16 |
         uint64_t(stride >> 4) << 32 | uint64_t(swizzle) << 62;
}

}  // namespace fastops::ptx
