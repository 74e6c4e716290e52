// From a forward problem to a kernel of its element type.
#pragma once

#include "attention/cuda/forward_mma.cuh"
#include "attention/cuda/forward_plain.cuh"
#include "attention/cuda/kernels.h"
#include "attention/cuda/tiles.h"

namespace fastops::attention::cuda {

template <typename T, int kD>
void run_forward_mma(const ForwardParams& p, void* stream) {
  constexpr size_t kRowBytes = Tile<kD>::kRowBytes;
  const Cut cut = plan_cut(p.mask.block_q, Tile<kD>::kRows, Tile<kD>::kColumns, kRowBytes,
                           2 * kRowBytes, fastops::cuda::device_info().shared_optin);
  const int64_t rows = cut.row_warps * Tile<kD>::kRows < p.mask.block_q
                           ? cut.row_warps * Tile<kD>::kRows
                           : p.mask.block_q;
  const size_t tile_bytes =
      (size_t(cut.row_warps) * Tile<kD>::kRows + size_t(cut.list_warps) * Tile<kD>::kColumns * 2) *
      kRowBytes;
  const size_t join_bytes = size_t(cut.warps() - cut.row_warps) * kJoinWords<kD> * 32 * 4;
  const size_t shared = tile_bytes > join_bytes ? tile_bytes : join_bytes;
  const int resident = resident_blocks(
      shared + kStaticShared, fastops::cuda::device_info().shared_optin, kD == 256 ? 1 : 2);
  const RowOrder order = order_rows(p, false, rows, 1, resident, stream);
  launch(&forward_mma_kernel<T, kD>,
         {"attention forward", grid_of(order.tiles), dim3(unsigned(cut.warps() * 32)), shared, 1,
          stream},
         p, cut, order);
}

template <typename T, int kD>
void run_forward_plain(const ForwardParams& p, void* stream) {
  const int64_t rows = p.mask.block_q < kPlainRows ? p.mask.block_q : kPlainRows;
  const int64_t ld = plain_row(p.head_dim, p.value_dim);
  const RowOrder order = order_rows(p, false, rows, 1, 1, stream);
  const size_t floats =
      size_t((kPlainRows + kPlainColumns) * ld + kPlainRows * (kPlainColumns + 1));
  launch(&forward_plain_kernel<T, kD>,
         {"attention forward plain", grid_of(order.tiles), dim3(kPlainThreads),
          floats * sizeof(float), 1, stream},
         p, order, int(ld));
}

template <typename T>
void run_forward(const ForwardParams& p, void* stream) {
  if (p.batch * p.heads * p.seq_q == 0) return;
  const int channels = padded_channels(p.head_dim, p.value_dim);
  if constexpr (sizeof(T) == 2) {
    const auto [kernel, cut] = plan_forward(p);
    if (kernel == Kernel::hopper) {
      if (p.dtype == DType::f16) return forward_hopper_f16(p, cut, stream);
      return forward_hopper_bf16(p, cut, stream);
    }
    if (kernel == Kernel::mma) {
      if (channels == 64) return run_forward_mma<T, 64>(p, stream);
      if (channels == 128) return run_forward_mma<T, 128>(p, stream);
      return run_forward_mma<T, 256>(p, stream);
    }
  }
  if (channels == 64) run_forward_plain<T, 64>(p, stream);
  else run_forward_plain<T, 256>(p, stream);
}

}  // namespace fastops::attention::cuda
