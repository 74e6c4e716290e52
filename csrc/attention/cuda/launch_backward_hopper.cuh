// From a backward problem to the Hopper kernels of its element type.
#pragma once

#include "attention/cuda/backward_hopper.cuh"
#include "attention/cuda/launch_hopper.cuh"

namespace fastops::attention::cuda {

template <typename T, int kD, bool kByKey>
void run_backward_hopper(const BackwardParams& p, const HopperCut& cut, void* stream) {
  using Tile = BackwardTile<kD>;
  const int unit = cut.block_listed < Tile::kColumns ? cut.block_listed : Tile::kColumns;
  const auto queries = [&](const Heads& t, int64_t channels) {
    return map_of(p, t, p.heads, p.seq_q, channels, kByKey ? unit : cut.rows, cut.pack);
  };
  const auto keys = [&](const Heads& t, int64_t channels) {
    return map_of(p, t, p.kv_heads, p.seq_kv, channels, kByKey ? cut.rows : unit, 1);
  };
  const CUtensorMap q = queries(p.q, p.head_dim), grad = queries(p.grad_out, p.value_dim);
  const CUtensorMap k = keys(p.k, p.head_dim), v = keys(p.v, p.value_dim);
  const BackwardMaps maps = kByKey ? BackwardMaps{k, v, q, grad} : BackwardMaps{q, grad, k, v};
  const RowOrder order = order_rows(p, kByKey, cut.rows, cut.pack, Tile::kTeams, stream);
  launch(&backward_hopper_kernel<T, kD, kByKey>,
         {kByKey ? "attention backward hopper by key" : "attention backward hopper by query",
          grid_of(ceil_div(order.tiles, Tile::kTeams)), dim3(Tile::kThreads), Tile::kShared, 1,
          stream},
         p, maps, cut, order);
}

template <typename T>
void run_backward_hopper(const BackwardParams& p, const HopperCut& cut, bool by_key, void* stream) {
  if (padded_channels(p.head_dim, p.value_dim) == 64) {
    if (by_key) run_backward_hopper<T, 64, true>(p, cut, stream);
    else run_backward_hopper<T, 64, false>(p, cut, stream);
  } else {
    if (by_key) run_backward_hopper<T, 128, true>(p, cut, stream);
    else run_backward_hopper<T, 128, false>(p, cut, stream);
  }
}

}  // namespace fastops::attention::cuda
