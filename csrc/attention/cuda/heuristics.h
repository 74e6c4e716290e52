// Which kernel and which cut: pure functions of sizes, dtype and device, testable on the host.
// No GPU was at hand: limits are starting points.
#pragma once

#include <cstddef>

#include "attention/attention.h"

namespace fastops::attention::cuda {

// The tensor-core kernels are compiled for 64, 128 and 256 channels; less is filled with zeros.
constexpr int padded_channels(int64_t head_dim, int64_t value_dim) {
  const int64_t most = head_dim > value_dim ? head_dim : value_dim;
  return most <= 64 ? 64 : most <= 128 ? 128 : 256;
}

// Rows and listed columns of one warp: what its registers hold of sums and scores. Each fragment of
// the streamed matrix feeds two of rows, which shared memory needs; 256 channels leave no room for
// that, nor 128 for 64 columns without spilling.
constexpr int warp_rows(int channels) { return channels == 256 ? 16 : 32; }
constexpr int warp_columns(int channels) { return channels == 64 ? 64 : 32; }

// How the (at most 4) warps of a thread block share a tile: `row_warps` by rows, `list_warps` by
// listed columns, whose results are joined at the end.
struct Cut {
  int row_warps = 1, list_warps = 1;
  constexpr int warps() const { return row_warps * list_warps; }
};

// Rows of one list go together; what warps that leaves over share the list. `rows`, `columns`: of a
// warp; `row_bytes`, `column_bytes`: of shared memory for each.
constexpr Cut plan_cut(int64_t block_rows, int rows, int columns, size_t row_bytes,
                       size_t column_bytes, int shared_limit) {
  Cut cut;
  while (cut.row_warps < 4 && cut.row_warps * rows < block_rows) cut.row_warps *= 2;
  cut.list_warps = 4 / cut.row_warps;
  const auto shared = [&] {
    return 1024 + cut.row_warps * rows * row_bytes + cut.list_warps * columns * column_bytes;
  };
  while (cut.list_warps > 1 && shared() > size_t(shared_limit)) cut.list_warps /= 2;
  return cut;
}

enum class Kernel {
  plain,   // scalar fp32 arithmetic: fp32, and what 16-byte copies cannot reach
  mma,     // mma.sync, sm_80 on
  hopper,  // TMA and wgmma, sm_90: to come
};

// Above, the sums of dk and dv do not fit the registers of mma.sync.
inline constexpr int kMmaBackwardChannels = 128;

// `aligned`: every row of q, k, v (and of gradients) starts on a multiple of 16 bytes.
constexpr Kernel plan_kernel(DType dtype, bool aligned) {
  return dtype != DType::f32 && aligned ? Kernel::mma : Kernel::plain;
}

}  // namespace fastops::attention::cuda
