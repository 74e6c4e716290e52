// The order in which thread blocks take rows: longest list first, of equal ones the last row first.
#include "attention/cuda/blocks.cuh"
#include "attention/cuda/order.h"
#include "attention/cuda/tiles.h"
#include "cuda/tile/scan.cuh"

namespace fastops::attention::cuda {
inline constexpr int kOrderThreads = 512, kOrderWarps = kOrderThreads / 32, kBins = 256;

// A block for the rows of each section's lists: a stable radix sort of any number of them, 8 bits
// of the length a pass, so one pass where no list has 256 blocks. Each warp has a run of the rows
// and counts of its own, so that only the sums over warps need the block.
//   shared    16.1 KB         registers  about 32       barriers  five a pass
//   bytes     of a row: its offsets three times (from L2), 4 written and read again by each pass
__global__ void __launch_bounds__(kOrderThreads)
    order_kernel(const __grid_constant__ BlockLists lists, const __grid_constant__ RowOrder o,
                 int32_t* order, int32_t* spare) {
  __shared__ int counts[kOrderWarps][kBins];
  __shared__ int partials[kOrderWarps];
  const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const unsigned first = blockIdx.x * o.section_lists;
  const unsigned here = min(o.section_lists, o.lists - first), rows = here * o.rows;
  order += first * o.rows;
  spare += first * o.rows;

  const auto length = [&](unsigned row) {
    const int64_t list = int64_t{first + row / o.rows} * o.members;
    int64_t sum = 0;
    for (unsigned m = 0; m < o.members; ++m)
      sum += extent(lists.offsets, (list + m) * o.rows + row % o.rows, lists.nnz).count;
    return unsigned(min(sum, int64_t{INT32_MAX}));
  };
  unsigned bits = 0;
#pragma unroll 1
  for (unsigned row = thread; row < rows; row += kOrderThreads) bits |= length(row);
  int passes = 1;
#pragma unroll 1
  while (passes < 4 && __syncthreads_or(bits >> 8 * passes)) ++passes;

  const unsigned run = (rows + kOrderThreads - 1) / kOrderThreads * 32;
  const unsigned begin = min(warp * run, rows), end = min(begin + run, rows);
  int* const own = counts[warp];
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    const bool even = (passes - pass) % 2 == 0;
    const int32_t* const from = even ? order : spare;
    int32_t* const to = even ? spare : order;
    const auto row_at = [&](unsigned i) {
      return pass > 0 ? unsigned(from[i]) : i % here * o.rows + (o.rows - 1 - i / here);
    };
    const auto bin_of = [&](unsigned row) { return kBins - 1 - (length(row) >> 8 * pass & 255); };
    for (int bin = lane; bin < kBins; bin += 32) own[bin] = 0;
    __syncwarp();
#pragma unroll 1
    for (unsigned i = begin + lane; i < end; i += 32) atomicAdd(&own[bin_of(row_at(i))], 1);
    __syncthreads();
    int total = 0, all;
    if (thread < kBins)
      for (int w = 0; w < kOrderWarps; ++w) total += counts[w][thread];
    int before = fastops::cuda::block_scan<kOrderWarps>(total, partials, all);
    if (thread < kBins)
      for (int w = 0; w < kOrderWarps; ++w) {
        const int count = counts[w][thread];
        counts[w][thread] = before;
        before += count;
      }
    __syncthreads();
#pragma unroll 1
    for (unsigned start = begin; start < end; start += 32) {
      const bool real = start + lane < end;
      const unsigned row = real ? row_at(start + lane) : 0;
      const int bin = real ? int(bin_of(row)) : -1;
      const unsigned same = __match_any_sync(kAllLanes, bin);
      const int rank = __popc(same & ((1u << lane) - 1));
      if (real) to[own[bin] + rank] = int32_t(row);
      __syncwarp();
      if (real && rank == 0) own[bin] += __popc(same);
      __syncwarp();
    }
    __syncthreads();
  }
}

size_t order_workspace(const BlockLists& lists) {
  if (lists.offsets == nullptr || lists.rows < 2) return 0;
  return size_t(lists.batch * lists.heads * lists.rows) * 2 * sizeof(int32_t);
}

void sort_rows(const BlockLists& lists, RowOrder& order, void* workspace, void* stream) {
  int32_t* const rows = static_cast<int32_t*>(workspace);
  launch(&order_kernel,
         {"attention order", grid_of(ceil_div(order.lists, order.section_lists)),
          dim3(kOrderThreads), 0, 1, stream},
         lists, order, rows, rows + size_t(order.lists) * order.rows);
  order.order = rows;
}

RowOrder order_rows(const Problem& p, bool by_key, int64_t tile_rows, int64_t pack, int resident,
                    void* stream) {
  const auto device = fastops::cuda::device_info();
  RowOrder order =
      plan_order(p, by_key, tile_rows, pack, int64_t{device.sm_count} * resident, device.l2_bytes);
  if (order.sorted) sort_rows(by_key ? p.mask.by_key : p.mask.by_query, order, p.workspace, stream);
  return order;
}

}  // namespace fastops::attention::cuda
