// From a backward problem to the kernels of its element type.
#pragma once

#include "attention/cuda/backward_mma.cuh"
#include "attention/cuda/backward_plain.cuh"
#include "attention/cuda/backward_rows.cuh"
#include "attention/cuda/kernels.h"
#include "attention/cuda/tiles.h"
#include "cuda/hopper.h"
#include "cuda/launch.h"

namespace fastops::attention::cuda {

template <typename T, int kD, bool kByKey>
void run_backward_mma(const BackwardParams& p, void* stream) {
  constexpr size_t kRowBytes = Tile<kD>::kRowBytes, kColumns = kBackwardColumns<kD, kByKey>;
  const int64_t block = kByKey ? p.mask.block_kv : p.mask.block_q;
  const Cut cut = plan_cut(block, 16, kColumns, 2 * kRowBytes, 4 * kRowBytes,
                           fastops::cuda::device_info().shared_optin);
  const size_t shared = (cut.row_warps * 32 + cut.list_warps * kColumns * 4) * kRowBytes;
  const int resident =
      resident_blocks(shared + kStaticShared, fastops::cuda::device_info().shared_optin, 2);
  const RowOrder order = order_rows(p, kByKey, cut.row_warps * 16, 1, resident, stream);
  launch(&backward_mma_kernel<T, kD, kByKey>,
         {kByKey ? "attention backward by key" : "attention backward by query",
          grid_of(order.tiles), dim3(unsigned(cut.warps() * 32)), shared, 1, stream},
         p, cut, order);
}

template <typename T, int kD, bool kByKey>
void run_backward_plain(const BackwardParams& p, void* stream) {
  constexpr int64_t kRows = 8 * kPlainGroupRows<kD>;
  const int64_t block = kByKey ? p.mask.block_kv : p.mask.block_q;
  const int64_t rows = block < kRows ? block : kRows;
  const int64_t ld = plain_row(p.head_dim, p.value_dim);
  const size_t shared = sizeof(float) * size_t((2 * kRows + 2 * kPlainColumns) * ld +
                                               2 * kRows * (kPlainColumns + 1));
  if (shared + kStaticShared > size_t(fastops::cuda::device_info().shared_optin))
    fail("fastops.block_sparse_attention: the backward pass with ", p.head_dim,
         " channels needs more shared memory than this device has");
  const RowOrder order = order_rows(p, kByKey, rows, 1, 1, stream);
  launch(&backward_plain_kernel<T, kD, kByKey>,
         {kByKey ? "attention backward plain by key" : "attention backward plain by query",
          grid_of(order.tiles), dim3(kPlainThreads), shared, 1, stream},
         p, order, int(ld));
}

template <typename T, bool kByKey>
void run_part(const BackwardParams& p, void* stream) {
  if ((kByKey ? p.batch * p.kv_heads * p.seq_kv : p.batch * p.heads * p.seq_q) == 0) return;
  const int channels = padded_channels(p.head_dim, p.value_dim);
  const bool aligned = aligned_rows(p) && aligned_rows(p.grad_out, p.value_dim) &&
                       aligned_rows(p.grad_q, p.head_dim) && aligned_rows(p.grad_k, p.head_dim) &&
                       aligned_rows(p.grad_v, p.value_dim);
  if constexpr (sizeof(T) == 2) {
    const bool hopper = fastops::cuda::hopper_enabled(fastops::cuda::device_info()) &&
                        tma_addresses(p) && tma_addresses(p.grad_out, p.batch, p.heads, p.seq_q);
    const HopperCut cut = plan_hopper_backward(p, kByKey);
    const Kernel kernel = plan_backward_kernel(p.dtype, aligned, channels, hopper, cut);
    if (kernel == Kernel::hopper) {
      if (p.dtype == DType::f16) return backward_hopper_f16(p, cut, kByKey, stream);
      return backward_hopper_bf16(p, cut, kByKey, stream);
    }
    if (kernel == Kernel::mma) {
      if (channels == 64) return run_backward_mma<T, 64, kByKey>(p, stream);
      return run_backward_mma<T, 128, kByKey>(p, stream);
    }
  }
  if (channels == 64) run_backward_plain<T, 64, kByKey>(p, stream);
  else run_backward_plain<T, 256, kByKey>(p, stream);
}

template <typename T>
void run_backward(const BackwardParams& p, void* stream) {
  const int64_t rows = p.batch * p.heads * p.seq_q;
  if (rows > 0)
    launch(&delta_kernel<T>,
           {"attention delta", grid_of(ceil_div(rows, kDeltaThreads / 32)), dim3(kDeltaThreads), 0,
            1, stream},
           p);
  if (p.grad_k.data || p.grad_v.data || p.grad_key_bias) run_part<T, true>(p, stream);
  if (p.grad_q.data) run_part<T, false>(p, stream);
}

}  // namespace fastops::attention::cuda
