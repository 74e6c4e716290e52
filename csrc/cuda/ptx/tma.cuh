// Tensor copies by TMA (sm_90): one thread moves a box of a tensor (csrc/cuda/tensor_map.h) between
// global and shared memory. Coordinates are of the box's first element, fastest dimension first,
// and may lie outside the tensor on any side. Shared memory is 128-byte aligned, with a swizzle 8
// times the swizzle (wgmma_descriptor.cuh). Otherwise as in bulk_copy.cuh: a load completes on an
// mbarrier, with the bytes of the whole box; a store belongs to a bulk group.
#pragma once

#include <cuda.h>

#include "cuda/runtime.h"

#ifdef SIMT_HOST
#include "simt/ptx/tma.h"
#else

namespace fastops::ptx {

// prefetch.tensormap (sm_90): the map will be used soon.
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" : : "l"(map) : "memory");
}

// cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier (sm_90).
__device__ __forceinline__ void tma_load(unsigned shared, const CUtensorMap* map, unsigned barrier,
                                         int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];"
      :
      : "r"(shared), "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// The same with .multicast::cluster (sm_90a): to the same offset in every block of `ranks`.
__device__ __forceinline__ void tma_load_multicast(unsigned shared, const CUtensorMap* map,
                                                   unsigned barrier, unsigned short ranks, int x,
                                                   int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;"
      :
      : "r"(shared), "l"(map), "r"(barrier), "h"(ranks), "r"(x), "r"(y)
      : "memory");
}

// cp.async.bulk.tensor.2d.global.shared::cta.bulk_group (sm_90).
__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
               :
               : "l"(map), "r"(shared), "r"(x), "r"(y)
               : "memory");
}

// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier (sm_90).
__device__ __forceinline__ void tma_load(unsigned shared, const CUtensorMap* map, unsigned barrier,
                                         int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];"
      :
      : "r"(shared), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same with .multicast::cluster (sm_90a): to the same offset in every block of `ranks`.
__device__ __forceinline__ void tma_load_multicast(unsigned shared, const CUtensorMap* map,
                                                   unsigned barrier, unsigned short ranks, int x,
                                                   int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;"
      :
      : "r"(shared), "l"(map), "r"(barrier), "h"(ranks), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// cp.async.bulk.tensor.3d.global.shared::cta.bulk_group (sm_90).
__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned shared, int x, int y,
                                          int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
               :
               : "l"(map), "r"(shared), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier (sm_90).
__device__ __forceinline__ void tma_load(unsigned shared, const CUtensorMap* map, unsigned barrier,
                                         int x, int y, int z, int u) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];"
      :
      : "r"(shared), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(u)
      : "memory");
}

// The same with .multicast::cluster (sm_90a): to the same offset in every block of `ranks`.
__device__ __forceinline__ void tma_load_multicast(unsigned shared, const CUtensorMap* map,
                                                   unsigned barrier, unsigned short ranks, int x,
                                                   int y, int z, int u) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;"
      :
      : "r"(shared), "l"(map), "r"(barrier), "h"(ranks), "r"(x), "r"(y), "r"(z), "r"(u)
      : "memory");
}

// cp.async.bulk.tensor.4d.global.shared::cta.bulk_group (sm_90).
__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned shared, int x, int y,
                                          int z, int u) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
               :
               : "l"(map), "r"(shared), "r"(x), "r"(y), "r"(z), "r"(u)
               : "memory");
}

// cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier (sm_90).
__device__ __forceinline__ void tma_load(unsigned shared, const CUtensorMap* map, unsigned barrier,
                                         int x, int y, int z, int u, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
      :
      : "r"(shared), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}

// The same with .multicast::cluster (sm_90a): to the same offset in every block of `ranks`.
__device__ __forceinline__ void tma_load_multicast(unsigned shared, const CUtensorMap* map,
                                                   unsigned barrier, unsigned short ranks, int x,
                                                   int y, int z, int u, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;"
      :
      : "r"(shared), "l"(map), "r"(barrier), "h"(ranks), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}

// cp.async.bulk.tensor.5d.global.shared::cta.bulk_group (sm_90).
__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned shared, int x, int y,
                                          int z, int u, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
      :
      : "l"(map), "r"(shared), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}

}  // namespace fastops::ptx

#endif
