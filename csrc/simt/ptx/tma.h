// Host bodies of csrc/cuda/ptx/tma.cuh (csrc/simt/tma.cpp).
#pragma once

#include <cuda.h>

#include "simt/ptx/bulk_copy.h"

namespace simt {

struct Box {
  const CUtensorMap* map;
  int dims;
  int at[5];
};
// ranks: 0 for no multicast.
SIMT_CALL void tensor_load(unsigned shared, const Box& box, unsigned barrier, unsigned ranks);
SIMT_CALL void tensor_store(const Box& box, unsigned shared);

}  // namespace simt

namespace fastops::ptx {

SIMT_INLINE void tma_prefetch(const CUtensorMap*) {}

template <typename... At>
SIMT_INLINE void tma_load(unsigned shared, const CUtensorMap* map, unsigned barrier, At... at) {
  simt::tensor_load(shared, {map, sizeof...(at), {at...}}, barrier, 0);
}
template <typename... At>
SIMT_INLINE void tma_load_multicast(unsigned shared, const CUtensorMap* map, unsigned barrier,
                                    unsigned short ranks, At... at) {
  simt::tensor_load(shared, {map, sizeof...(at), {at...}}, barrier, ranks);
}
template <typename... At>
SIMT_INLINE void tma_store(const CUtensorMap* map, unsigned shared, At... at) {
  simt::tensor_store({map, sizeof...(at), {at...}}, shared);
}

}  // namespace fastops::ptx
