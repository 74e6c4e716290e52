// From a forward problem to a Hopper kernel of its element type.
#pragma once

#include "attention/cuda/forward_hopper.cuh"
#include "attention/cuda/launch_hopper.cuh"

namespace fastops::attention::cuda {

template <typename T, int kD, int kConsumers>
void run_hopper(const ForwardParams& p, const HopperCut& cut, void* stream) {
  using Tile = HopperTile<kD, kConsumers>;
  const int unit = cut.block_listed < Tile::kColumns ? cut.block_listed : Tile::kColumns;
  const HopperMaps maps = {
      map_of(p, p.q, p.heads, p.seq_q, p.head_dim, cut.rows, cut.pack),
      map_of(p, p.k, p.kv_heads, p.seq_kv, p.head_dim, unit, 1),
      map_of(p, p.v, p.kv_heads, p.seq_kv, p.value_dim, unit, 1),
  };
  const auto [order, splits] = order_hopper_rows(p, cut, stream);
  const int64_t wave = int64_t{fastops::cuda::device_info().sm_count} * Tile::kBlocksPerSm;
  // Unsorted rows of several lengths are left to the device to hand out.
  const bool alike = !p.mask.by_query.offsets || order.lists * order.rows == 1;
  const bool persistent = (order.next || alike) && order.tiles > wave;
  const int64_t blocks = persistent ? wave : order.tiles;
  launch(
      &forward_hopper_kernel<T, kD, kConsumers>,
      {"attention forward hopper", grid_of(blocks), dim3(Tile::kThreads), Tile::kShared, 1, stream},
      p, maps, cut, order, splits);
  if (splits.slots > 0)
    launch(&join_kernel<T>,
           {"attention join",
            grid_of(int64_t{splits.sections} * (splits.slots / 2) * order.section_heads),
            dim3(kJoinThreads), 0, 1, stream},
           p, cut, order, splits);
}

template <typename T, int kD>
void run_hopper(const ForwardParams& p, const HopperCut& cut, void* stream) {
  if (cut.consumers == 2) run_hopper<T, kD, 2>(p, cut, stream);
  else run_hopper<T, kD, 1>(p, cut, stream);
}

template <typename T>
void run_forward_hopper(const ForwardParams& p, const HopperCut& cut, void* stream) {
  switch (hopper_channels(p.head_dim, p.value_dim)) {
    case 64: return run_hopper<T, 64>(p, cut, stream);
    case 96: return run_hopper<T, 96>(p, cut, stream);
    case 128: return run_hopper<T, 128>(p, cut, stream);
    case 192: return run_hopper<T, 192>(p, cut, stream);
    default: return run_hopper<T, 256>(p, cut, stream);
  }
}

}  // namespace fastops::attention::cuda
