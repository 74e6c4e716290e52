// The order in which thread blocks take rows: longest list first, of equal ones the last row first.
#include "attention/cuda/blocks.cuh"
#include "attention/cuda/order.h"
#include "attention/cuda/tiles.h"
#include "cuda/tile/scan.cuh"

namespace fastops::attention::cuda {
inline constexpr int kOrderThreads = 512, kOrderWarps = kOrderThreads / 32, kBins = 256;

// What the kernel leaves (RowOrder, RowSplits), and room for as much of the order.
struct OrderSpace {
  int32_t *order, *spare, *next, *first_slot, *split, *piece;
};

// A stable radix sort by one block, 8 bits of the key a pass, greatest first: of `count` items,
// first(i) before, into `order`, in turns with `spare`. Each warp has a run of the items and counts
// of its own, so that only the sums over warps need the block. Five barriers a pass.
struct Counts {
  int bins[kOrderWarps][kBins];
  int partials[kOrderWarps];
};

template <typename First, typename Key>
__device__ __forceinline__ void sort(Counts& counts, int32_t* order, int32_t* spare, unsigned count,
                                     int passes, const First& first, const Key& key) {
  const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const unsigned run = (count + kOrderThreads - 1) / kOrderThreads * 32;
  const unsigned begin = min(warp * run, count), end = min(begin + run, count);
  int* const own = counts.bins[warp];
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    const bool even = (passes - pass) % 2 == 0;
    const int32_t* const from = even ? order : spare;
    int32_t* const to = even ? spare : order;
    const auto item_at = [&](unsigned i) { return pass > 0 ? from[i] : first(i); };
    const auto bin_of = [&](int item) { return kBins - 1 - (key(item) >> 8 * pass & 255); };
    for (int bin = lane; bin < kBins; bin += 32) own[bin] = 0;
    __syncwarp();
#pragma unroll 1
    for (unsigned i = begin + lane; i < end; i += 32) atomicAdd(&own[bin_of(item_at(i))], 1);
    __syncthreads();
    int total = 0, all;
    if (thread < kBins)
      for (int w = 0; w < kOrderWarps; ++w) total += counts.bins[w][thread];
    int before = fastops::cuda::block_scan<kOrderWarps>(total, counts.partials, all);
    if (thread < kBins)
      for (int w = 0; w < kOrderWarps; ++w) {
        const int here = counts.bins[w][thread];
        counts.bins[w][thread] = before;
        before += here;
      }
    __syncthreads();
#pragma unroll 1
    for (unsigned start = begin; start < end; start += 32) {
      const bool real = start + lane < end;
      const int item = real ? item_at(start + lane) : 0;
      const int bin = real ? int(bin_of(item)) : -1;
      const unsigned same = __match_any_sync(kAllLanes, bin);
      const int rank = __popc(same & ((1u << lane) - 1));
      if (real) to[own[bin] + rank] = item;
      __syncwarp();
      if (real && rank == 0) own[bin] += __popc(same);
      __syncwarp();
    }
    __syncthreads();
  }
}

// A block for the rows of each section's lists. Where no list has 256 blocks the sort is one pass.
//   shared    16.2 KB         registers  about 40       barriers  five a pass; to split, seven more
//   bytes     of a row: its offsets three times (from L2), 4 written and read again by each pass
template <bool kSplits>
__global__ void __launch_bounds__(kOrderThreads)
    order_kernel(const __grid_constant__ BlockLists lists, const __grid_constant__ RowOrder o,
                 const __grid_constant__ RowSplits splits, OrderSpace space) {
  __shared__ Counts counts;
  __shared__ int64_t totals[kOrderWarps];
  const unsigned thread = threadIdx.x, first = blockIdx.x * o.section_lists;
  const unsigned here = min(o.section_lists, o.lists - first), rows = here * o.rows;
  const unsigned listed = o.section_lists * o.rows, items = listed + splits.slots;
  int32_t* const order = space.order + blockIdx.x * items;
  int32_t* const spare = space.spare + blockIdx.x * items;

  // Of equal rows the last first, of each list in turn.
  const auto row_at = [&](unsigned i) { return int(i % here * o.rows + (o.rows - 1 - i / here)); };
  const auto length = [&](unsigned row) {
    const int64_t list = int64_t{first + row / o.rows} * o.members;
    int64_t sum = 0;
    for (unsigned m = 0; m < o.members; ++m)
      sum += extent(lists.offsets, (list + m) * o.rows + row % o.rows, lists.nnz).count;
    if constexpr (kSplits) sum = (sum * splits.block + splits.columns - 1) / splits.columns;
    return int(min(sum, int64_t{INT32_MAX}));
  };
  if (blockIdx.x == 0 && thread == 0) *space.next = 0;
  unsigned bits = 0;
  int64_t total = 0;
#pragma unroll 1
  for (unsigned row = thread; row < rows; row += kOrderThreads) {
    const int own = length(row);
    bits |= unsigned(own);
    total += own;
  }
  int passes = 1;
#pragma unroll 1
  while (passes < 4 && __syncthreads_or(bits >> 8 * passes)) ++passes;
  if constexpr (!kSplits) {
    sort(counts, order, spare, rows, passes, row_at, length);
    return;
  }

  // Tiles of a piece at least: no more pieces than slots.
  total = fastops::cuda::warp_sum(total, 32);
  if (thread % 32 == 0) totals[thread / 32] = total;
  int32_t* const numbered = passes % 2 == 0 ? order : spare;
  for (unsigned i = thread; i < items; i += kOrderThreads) numbered[i] = -1;
  int32_t* const split = space.split + blockIdx.x * (splits.slots / 2) * 2;
  for (unsigned i = thread; i < splits.slots / 2; i += kOrderThreads) split[2 * i] = -1;
  __syncthreads();
  total = 0;
  for (int w = 0; w < kOrderWarps; ++w) total += totals[w];
  const int64_t mean = (total + rows - 1) / rows, room = (total + splits.slots - 1) / splits.slots;
  const int piece = int(min(max(max(mean, room), int64_t{kLeastPiece}), int64_t{1} << 30));
  if (thread == 0) space.piece[blockIdx.x] = piece;

  // Each row's items: itself, or its pieces. Lists that change meanwhile lead no further.
  int32_t* const first_slot = space.first_slot + blockIdx.x * listed;
  int slots_before = 0, splits_before = 0;
#pragma unroll 1
  for (unsigned start = 0; start < rows; start += kOrderThreads) {
    const unsigned i = start + thread;
    const int row = i < rows ? row_at(i) : 0, own = i < rows ? length(row) : 0;
    const int pieces = own > 2 * int64_t{piece} ? own / piece : 0;
    int slots, count;
    int slot =
        slots_before + fastops::cuda::block_scan<kOrderWarps>(pieces, counts.partials, slots);
    const int at =
        splits_before + fastops::cuda::block_scan<kOrderWarps>(pieces > 0, counts.partials, count);
    slots_before += slots;
    splits_before += count;
    if (i >= rows) continue;
    const bool fits = pieces > 0 && slot + pieces <= int(splits.slots);
    const int64_t to = int64_t{i} + slot - at;
    first_slot[row] = fits ? slot : -1;
    for (int j = 0; j < (fits ? pieces : 1); ++j)
      if (to + j < items) numbered[to + j] = int(j * listed) + row;
    if (!fits) continue;
    split[2 * at] = row;
    split[2 * at + 1] = pieces;
  }
  __syncthreads();
  sort(
      counts, order, spare, items, passes, [&](unsigned i) { return numbered[i]; },
      [&](int item) {
        if (item < 0) return 0;
        const unsigned row = unsigned(item) % listed;
        const int own = length(row), j = int(unsigned(item) / listed);
        if (first_slot[row] < 0) return own;
        const int pieces = max(own / piece, 1);
        return own / pieces + (j < own % pieces);
      });
}

size_t order_workspace(const BlockLists& lists) {
  if (lists.offsets == nullptr || lists.rows < 2) return 0;
  return size_t(lists.batch * lists.heads * lists.rows * 2 + 1) * sizeof(int32_t);
}

namespace {

int64_t list_sections(const RowOrder& order) { return ceil_div(order.lists, order.section_lists); }

template <bool kSplits>
void launch_order(const BlockLists& lists, const RowOrder& order, const RowSplits& splits,
                  const OrderSpace& space, void* stream) {
  launch(&order_kernel<kSplits>,
         {kSplits ? "attention order and splits" : "attention order", grid_of(list_sections(order)),
          dim3(kOrderThreads), 0, 1, stream},
         lists, order, splits, space);
}

}  // namespace

void sort_rows(const BlockLists& lists, RowOrder& order, void* workspace, void* stream) {
  int32_t* const rows = static_cast<int32_t*>(workspace);
  const size_t count = size_t(order.lists) * order.rows;
  const OrderSpace space{rows, rows + count, rows + 2 * count};
  launch_order<false>(lists, order, {}, space, stream);
  order.order = space.order;
  order.next = space.next;
}

RowOrder order_rows(const Problem& p, bool by_key, int64_t tile_rows, int64_t pack, int resident,
                    void* stream) {
  const auto device = fastops::cuda::device_info();
  RowOrder order =
      plan_order(p, by_key, tile_rows, pack, int64_t{device.sm_count} * resident, device.l2_bytes);
  if (order.sorted) sort_rows(by_key ? p.mask.by_key : p.mask.by_query, order, p.workspace, stream);
  return order;
}

HopperOrder plan_hopper_order(const Problem& p, const HopperCut& cut) {
  const auto device = fastops::cuda::device_info();
  const int channels = hopper_channels(p.head_dim, p.value_dim);
  const int columns = hopper_columns(channels, cut.consumers);
  const int64_t wave = int64_t{device.sm_count} * hopper_blocks(channels, cut.consumers);
  HopperOrder all;
  all.order = plan_order(p, false, cut.rows, cut.pack, wave, device.l2_bytes);
  all.splits = plan_splits(p, cut, columns, wave, all.order);
  return all;
}

namespace {

// Of int32: order, spare, next, first_slot, split, piece; then, 16-byte aligned, of float: out,
// lse.
struct SplitSizes {
  size_t sections, items, listed, split, rows, channels;  // split: int32 of a section

  SplitSizes(const RowOrder& order, const RowSplits& splits, size_t tile_rows, size_t channels)
      : sections(size_t(list_sections(order))),
        items(size_t(order.section_lists) * order.rows + splits.slots),
        listed(size_t(order.section_lists) * order.rows),
        split(splits.slots / 2 * 2),
        rows(size_t{splits.sections} * splits.slots * order.section_heads * tile_rows),
        channels(channels) {}

  size_t integers() const { return (sections * (2 * items + listed + split + 1) + 4) / 4 * 4; }
  size_t bytes() const { return (integers() + rows * (channels + 1)) * 4; }
};

}  // namespace

size_t hopper_order_workspace(const Problem& p, const HopperCut& cut) {
  const auto [order, splits] = plan_hopper_order(p, cut);
  if (splits.slots == 0) return order.sorted ? order_workspace(p.mask.by_query) : 0;
  return SplitSizes(order, splits, size_t(cut.rows) * cut.pack, size_t(p.value_dim)).bytes();
}

void split_rows(const BlockLists& lists, RowOrder& order, RowSplits& splits, size_t tile_rows,
                size_t channels, void* workspace, void* stream) {
  const SplitSizes sizes(order, splits, tile_rows, channels);
  OrderSpace space{static_cast<int32_t*>(workspace)};
  space.spare = space.order + sizes.sections * sizes.items;
  space.next = space.spare + sizes.sections * sizes.items;
  space.first_slot = space.next + 1;
  space.split = space.first_slot + sizes.sections * sizes.listed;
  space.piece = space.split + sizes.sections * sizes.split;
  launch_order<true>(lists, order, splits, space, stream);
  order.order = space.order;
  order.next = space.next;
  splits.piece = space.piece;
  splits.first_slot = space.first_slot;
  splits.split = space.split;
  splits.out = static_cast<float*>(workspace) + sizes.integers();
  splits.lse = splits.out + sizes.rows * sizes.channels;
}

HopperOrder order_hopper_rows(const Problem& p, const HopperCut& cut, void* stream) {
  HopperOrder all = plan_hopper_order(p, cut);
  const BlockLists& lists = p.mask.by_query;
  if (all.splits.slots > 0)
    split_rows(lists, all.order, all.splits, size_t(cut.rows) * cut.pack, size_t(p.value_dim),
               p.workspace, stream);
  else if (all.order.sorted) sort_rows(lists, all.order, p.workspace, stream);
  return all;
}

}  // namespace fastops::attention::cuda
