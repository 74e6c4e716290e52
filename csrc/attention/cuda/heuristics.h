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
};

// The Hopper forward, whose products may be of any width, is compiled for two more.
constexpr int hopper_channels(int64_t head_dim, int64_t value_dim) {
  const int64_t most = head_dim > value_dim ? head_dim : value_dim;
  return most <= 64 ? 64 : most <= 96 ? 96 : most <= 128 ? 128 : most <= 192 ? 192 : 256;
}

// Blocks of the forward that share an SM. Registers allow two of one consumer, shared memory up to
// 128 channels.
constexpr int hopper_blocks(int channels, int consumers) {
  return consumers == 1 && channels <= 128 ? 2 : 1;
}

// Listed columns of a tile of the forward: as many as registers, and shared memory for two tiles of
// K and V, leave room for.
constexpr int hopper_columns(int channels, int consumers) {
  return channels <= 64 * consumers ? 128 : 64;
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

// Which tile of rows a thread block has (order.cuh).
//
// Heavy rows first: a grid ends with what started last, which should be light. So within a section
// of heads rows are taken by the length of their lists, as a kernel beforehand has sorted them
// (order.cu), and of equal ones the last first, each of all heads that share it in turn. A section
// has as many heads as have their keys and values in half of L2 together, so that these are read
// from memory once, and at least a wave of tiles; what of it is light runs beside what is heavy in
// the next. Tiles that a row is cut into follow each other: they read the same.
struct RowOrder {
  int64_t tiles = 0;                              // of all heads; in the end some may have no rows
  unsigned rows = 0, parts = 1;                   // rows of blocks of a head; tiles of each
  unsigned heads = 0;                             // of all samples: of rows, or packs of them
  unsigned inner = 1;                             // heads are numbered heads of samples by
  bool samples_inner = false;                     // samples, or the other way round
  unsigned lists = 1, members = 1;                // in all; how many of the mask's make up one
  unsigned section_lists = 1, section_heads = 1;  // of a section, heads: for each list
  unsigned repeats = 1;                           // sections in turn that have the same lists
  bool sorted = false;
  // [lists * rows], once sorted: of each section its rows as list * rows + row.
  const int32_t* order = nullptr;
  int32_t* next = nullptr;  // how many tiles have been taken besides the first of each block: 0
};

// Thread blocks of an SM, by their shared memory, at most `most`.
constexpr int resident_blocks(size_t shared, int shared_limit, int most) {
  const auto fit = int((size_t(shared_limit) + 1024) / (shared + 1024));
  return fit < 1 ? 1 : fit < most ? fit : most;
}

// `tile_rows` of a tile, of each of `pack` heads. `wave`: tiles that run at once, at least.
constexpr RowOrder plan_order(const Problem& p, bool by_key, int64_t tile_rows, int64_t pack,
                              int64_t wave, int64_t l2_bytes) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const BlockLists& lists = by_key ? p.mask.by_key : p.mask.by_query;
  const bool dense = lists.offsets == nullptr;
  const int64_t length = by_key ? p.seq_kv : p.seq_q, group = p.heads / p.kv_heads;
  const int64_t block_rows = by_key ? p.mask.block_kv : p.mask.block_q;
  const int64_t heads = by_key ? p.kv_heads : p.heads / pack;
  const bool own_batch = !dense && lists.batch > 1, own_heads = !dense && lists.heads > 1;
  RowOrder order;
  order.rows = unsigned(dense ? ceil_div(length, tile_rows) : lists.rows);
  order.parts = unsigned(dense ? 1 : ceil_div(block_rows, tile_rows));
  order.heads = unsigned(p.batch * heads);
  order.samples_inner = own_heads && !own_batch;
  order.inner = unsigned(order.samples_inner ? p.batch : heads);
  order.lists = unsigned((own_batch ? p.batch : 1) * (own_heads ? heads : 1));
  order.members = unsigned(by_key && own_heads ? group : 1);

  // Heads one after the other that read the same keys and values, and that share a list.
  const int64_t together = by_key || order.samples_inner ? 1 : group / pack;
  const int64_t sharing = order.heads / order.lists;
  const int64_t bytes = int64_t(size_of(p.dtype)) * (p.head_dim + p.value_dim) *
                        (by_key ? p.seq_q * group : p.seq_kv);
  const int64_t fit = (bytes > 0 ? l2_bytes / 2 / bytes : 1) * together;
  const int64_t least =
      ceil_div(ceil_div(wave, int64_t{order.rows} * order.parts), together) * together;
  int64_t each = fit > least ? fit : least;
  if (each >= sharing) {
    const int64_t in = fit / sharing, needed = ceil_div(least, sharing);
    const int64_t section = in > needed ? in : needed;
    order.section_lists = section < order.lists ? unsigned(section) : order.lists;
    each = sharing;
  }
  while (sharing % each != 0 && each > least) each -= together;
  while (sharing % each != 0) each += together;
  order.section_heads = unsigned(each);
  order.repeats = unsigned(sharing / each);
  order.tiles = int64_t{order.rows} * order.parts * order.heads;
  order.sorted = !dense && order.rows > 1 && order.tiles > wave;
  return order;
}

// How the Hopper forward splits rows far above the mean, which order alone leaves to run last by
// themselves: a row of more than twice the mean of its section is cut into pieces of at least the
// mean, and so that no section has more than `slots` of them. Each is an item of the order, with
// its place in it by its own length; what pieces leave is merged in their order (split.cuh).
// `slots` of all sections are 8 for each tile that runs at once, so that a piece is no more than an
// eighth of what each of these has to do where sections are alike; that bounds the memory.
struct RowSplits {
  unsigned slots = 0;               // of a section, for each of its heads; 0: nothing is split
  unsigned columns = 0, block = 0;  // listed, of a tile and of a block
  unsigned sections = 0;
  // By list section, as sorted: tiles of a piece at least; of each row its first slot or -1; of
  // each row that is split its number and how many pieces, or -1.
  const int32_t *piece = nullptr, *first_slot = nullptr, *split = nullptr;
  float *out = nullptr, *lse = nullptr;  // [slot, row of a tile(, channel)], lse in units of log2
};
inline constexpr unsigned kLeastPiece = 4;  // tiles: less costs more than it gains

constexpr RowSplits plan_splits(const Problem& p, const HopperCut& cut, int columns, int64_t wave,
                                RowOrder& order) {
  RowSplits splits;
  // In one wave the order does not matter, but a row of this many tiles may outlast all others.
  constexpr int64_t kLongRow = 64;
  const bool one_wave = !order.sorted && p.seq_kv < kLongRow * columns;
  if (p.mask.by_query.offsets == nullptr || order.rows < 2 || one_wave) return splits;
  const int64_t list_sections = (order.lists + order.section_lists - 1) / order.section_lists;
  const int64_t sections = list_sections * order.repeats;
  const int64_t listed = int64_t{order.section_lists} * order.rows;
  int64_t slots = 8 * wave / (sections * order.section_heads);
  slots = slots < listed ? slots : listed;
  // Items are numbered by piece and row.
  if (slots < 2 || (slots + 1) * listed >= int64_t{1} << 31) return splits;
  order.sorted = true;
  order.tiles = sections * (listed + slots) * order.section_heads;
  splits.slots = unsigned(slots);
  splits.columns = unsigned(columns);
  splits.block = unsigned(cut.block_listed);
  splits.sections = unsigned(sections);
  return splits;
}

enum class Kernel {
  plain,   // scalar fp32 arithmetic: fp32, and what 16-byte copies cannot reach
  mma,     // mma.sync, sm_80 on
  hopper,  // TMA and wgmma, sm_90
};

// Of the forward. `aligned`: every row of q, k, v (and of gradients) starts on a multiple of 16
// bytes; `hopper`: it may be chosen here, and TMA can address what it copies.
constexpr Kernel plan_forward_kernel(DType dtype, bool aligned, bool hopper, const HopperCut& cut) {
  if (dtype == DType::f32 || !aligned) return Kernel::plain;
  return hopper && cut.consumers > 0 ? Kernel::hopper : Kernel::mma;
}

// Of a part of the backward: above 128 channels the sums of dk and dv do not fit the registers of
// tensor cores.
constexpr Kernel plan_backward_kernel(DType dtype, bool aligned, int channels, bool hopper,
                                      const HopperCut& cut) {
  return channels <= 128 ? plan_forward_kernel(dtype, aligned, hopper, cut) : Kernel::plain;
}

}  // namespace fastops::attention::cuda
