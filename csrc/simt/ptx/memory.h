// Host bodies of csrc/cuda/ptx/memory.cuh: one checked access each.
#pragma once

#include <vector_types.h>

#include "simt/threads.h"

namespace simt {

// Checked, at the full size and alignment of the access; the address is generic.
SIMT_CALL uint4 load_16(const void* p);
SIMT_CALL uint2 load_8(const void* p);
SIMT_CALL void store_16(void* p, uint4 value);
SIMT_CALL void store_8(void* p, uint2 value);

// 32-bit shared addresses, opaque to kernels except that offsets may be added. A block's own
// window starts at 0; csrc/simt/ptx/cluster.h maps those of other blocks.
SIMT_CALL unsigned shared_address(const void* p);
SIMT_CALL void* from_shared_address(unsigned address);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE uint4 ld_global_128(const void* p) { return simt::load_16(p); }
SIMT_INLINE uint2 ld_global_64(const void* p) { return simt::load_8(p); }
SIMT_INLINE void st_global_128(void* p, uint4 v) { simt::store_16(p, v); }
SIMT_INLINE void st_global_64(void* p, uint2 v) { simt::store_8(p, v); }
SIMT_INLINE unsigned smem_addr(const void* p) { return simt::shared_address(p); }
SIMT_INLINE uint4 ld_shared_128(unsigned address) {
  return simt::load_16(simt::from_shared_address(address));
}
SIMT_INLINE void st_shared_128(unsigned address, uint4 v) {
  simt::store_16(simt::from_shared_address(address), v);
}

}  // namespace fastops::ptx
