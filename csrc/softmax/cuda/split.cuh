// Rows cut into chunks over blocks: few long rows, and rows longer than the chip can hold. The
// chunk size is a function of the shape and the device, and chunks are combined in their order, so
// the result does not depend on scheduling.
#pragma once

#include "softmax/cuda/rows.cuh"

namespace fastops::softmax::cuda {

inline constexpr int kSplitThreads = 256;
inline constexpr int kSplitUnroll = 4;

struct Chunk {
  int64_t row, index, begin;
  int count;
};

// Block b works on chunk b % chunks of row b / chunks.
template <typename Params>
__device__ __forceinline__ Chunk chunk_of(const Params& p, int64_t block, int chunks, int size) {
  Chunk c;
  c.row = divide(block, chunks, c.index);
  c.begin = c.index * size;
  c.count = static_cast<int>(min(static_cast<int64_t>(size), p.shape.n - c.begin));
  return c;
}

// The statistic of each chunk of `size` elements into p.workspace[row][chunk].
//
//   bytes     inputs once
//   barriers  one
//   in flight 4 vectors a thread and input
template <typename Op>
__global__ __launch_bounds__(kSplitThreads, 1) void split_reduce_kernel(const __grid_constant__
                                                                        typename Op::Params p,
                                                                        int chunks, int size) {
  __shared__ typename Op::Stat partials[1][fastops::cuda::kWarp];
  const int64_t block = linear_block();
  if (block >= p.shape.rows * chunks) return;
  const Chunk c = chunk_of(p, block, chunks, size);
  const typename Op::Row row = Op::locate(p, c.row, c.begin, c.count);
  typename Op::Stat stat = Op::identity();
  for_each_vector<Op, kSplitUnroll>(
      row, threadIdx.x, kSplitThreads,
      [&](int, const typename Op::Held& held) { Op::accumulate(stat, held); });
  stat = fastops::cuda::block_reduce<Op>(stat, partials, 0);
  if (threadIdx.x == 0) static_cast<typename Op::Stat*>(p.workspace)[block] = stat;
}

// Merges the row's chunks, every block alike, and writes its own chunk.
//
//   bytes     inputs once more, output once; chunks * 8 bytes a block from L2
//   barriers  one
template <typename Op>
__global__ __launch_bounds__(kSplitThreads, 1) void split_write_kernel(const __grid_constant__
                                                                       typename Op::Params p,
                                                                       int chunks, int size) {
  __shared__ typename Op::Stat partials[1][fastops::cuda::kWarp];
  const int64_t block = linear_block();
  if (block >= p.shape.rows * chunks) return;
  const Chunk c = chunk_of(p, block, chunks, size);
  typename Op::Stat total = Op::identity();
  if constexpr (Op::kReduces) {
    const auto* stats = static_cast<const typename Op::Stat*>(p.workspace) + c.row * chunks;
    for (int i = threadIdx.x; i < chunks; i += kSplitThreads) total = Op::merge(total, stats[i]);
    total = fastops::cuda::block_reduce<Op>(total, partials, 0);
  }
  if (threadIdx.x == 0 && c.index == 0) Op::write_row(p, c.row, total);
  const typename Op::Row row = Op::locate(p, c.row, c.begin, c.count);
  const typename Op::Final final = Op::finish(p, c.row, total);
  for_each_vector<Op, kSplitUnroll>(
      row, threadIdx.x, kSplitThreads,
      [&](int v, const typename Op::Held& held) { Op::write(row, v, held, final); });
}

}  // namespace fastops::softmax::cuda
