// Host bodies of csrc/cuda/ptx/cluster.cuh.
#pragma once

#include "simt/ptx/memory.h"

namespace simt {

__attribute__((const)) unsigned cluster_rank();
__attribute__((const)) unsigned cluster_size();
SIMT_CALL unsigned map_shared(unsigned address, unsigned rank);
SIMT_CALL void cluster_arrive();
SIMT_CALL void cluster_wait();

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE unsigned cluster_rank() { return simt::cluster_rank(); }
SIMT_INLINE unsigned cluster_size() { return simt::cluster_size(); }
SIMT_INLINE unsigned cluster_map(unsigned address, unsigned rank) {
  return simt::map_shared(address, rank);
}
SIMT_INLINE void st_cluster_64(unsigned mapped_address, uint2 v) {
  simt::store_8(simt::from_shared_address(mapped_address), v);
}
SIMT_INLINE void cluster_arrive() { simt::cluster_arrive(); }
SIMT_INLINE void cluster_wait() { simt::cluster_wait(); }

}  // namespace fastops::ptx
