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

// How a thread block of the Hopper forward, or a team of the backward, cuts the work: one or two
// warpgroups of 64 rows that multiply. `pack` heads that share a list and what it names, `rows` of
// each, lie in one tile.
struct HopperCut {
  int consumers = 0;  // 0: too few rows share a list; tensor cores would mostly multiply zeros
  int rows = 0, pack = 1;
  int block_listed = 0;
  int64_t tiles = 0;  // of a head's rows
};

// Listed columns of a tile of the forward. With one consumer two blocks share an SM: at 128
// channels that leaves shared memory for 64.
constexpr int hopper_columns(int channels, int consumers) {
  return channels == 128 && consumers == 1 ? 64 : 128;
}

// `block_rows`, `block_listed`: of the mask, `dense` where everything is kept and blocks may be of
// any size; `length`: how many rows there are; `group`: heads of rows that share what is listed;
// `shared_lists`: these have the same lists; `most`: warpgroups.
constexpr HopperCut plan_hopper(int64_t block_rows, int64_t block_listed, bool dense,
                                int64_t length, int64_t group, bool shared_lists, int most) {
  HopperCut cut;
  cut.rows = int(block_rows < 64 * most ? block_rows : 64 * most);
  cut.block_listed = dense ? 128 : int(block_listed);
  if (dense) {
    cut.rows = 16;
    while (cut.rows < 64 * most && cut.rows < length) cut.rows *= 2;
  }
  const auto packs = [&](int pack) {
    return pack <= group && group % pack == 0 && (pack == 1 || dense || shared_lists);
  };
  for (int consumers = most; consumers > 0 && cut.consumers == 0; --consumers) {
    const int pack = 64 * consumers / cut.rows;
    if (pack < 1 || !packs(pack)) continue;
    cut.consumers = consumers;
    cut.pack = pack;
  }
  cut.tiles = (length + cut.rows - 1) / cut.rows;
  return cut;
}

// Of the forward: two warpgroups where there are rows for them.
constexpr HopperCut plan_hopper_forward(const Problem& p) {
  return plan_hopper(p.mask.block_q, p.mask.block_kv, p.mask.by_query.offsets == nullptr, p.seq_q,
                     p.heads / p.kv_heads, p.mask.by_query.heads == 1, 2);
}

// Of a team of either part of the backward: one. By key the heads of a group are listed one after
// the other, so none are packed.
constexpr HopperCut plan_hopper_backward(const Problem& p, bool by_key) {
  if (by_key)
    return plan_hopper(p.mask.block_kv, p.mask.block_q, p.mask.by_key.offsets == nullptr, p.seq_kv,
                       1, false, 1);
  return plan_hopper(p.mask.block_q, p.mask.block_kv, p.mask.by_query.offsets == nullptr, p.seq_q,
                     p.heads / p.kv_heads, p.mask.by_query.heads == 1, 1);
}

enum class Kernel {
  plain,   // scalar fp32 arithmetic: fp32, and what 16-byte copies cannot reach
  mma,     // mma.sync, sm_80 on
  hopper,  // TMA and wgmma, sm_90
};

// Above, the sums of dk and dv do not fit the registers of mma.sync, nor those of the output
// together with scores those of wgmma.
inline constexpr int kMmaBackwardChannels = 128, kHopperChannels = 128;

// `aligned`: every row of q, k, v (and of gradients) starts on a multiple of 16 bytes.
constexpr Kernel plan_kernel(DType dtype, bool aligned) {
  return dtype != DType::f32 && aligned ? Kernel::mma : Kernel::plain;
}

// Of the forward, or of a part of the backward up to kMmaBackwardChannels. `hopper`: it may be
// chosen here, and TMA can address what it copies.
constexpr Kernel plan_kernel(DType dtype, bool aligned, int channels, bool hopper,
                             const HopperCut& cut) {
  const Kernel kernel = plan_kernel(dtype, aligned);
  const bool fits = hopper && channels <= kHopperChannels && cut.consumers > 0;
  return kernel == Kernel::mma && fits ? Kernel::hopper : kernel;
}

}  // namespace fastops::attention::cuda
