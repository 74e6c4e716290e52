// How a match is cut: pure functions of sizes and device. No GPU was at hand: starting points.
#pragma once

#include <cstddef>

#include "merge/merge.h"

namespace fastops::merge::cuda {

inline constexpr int kMmaThreads = 128;
inline constexpr int kWarpRows = 32, kWarpColumns = 64;  // scores that a warp holds
inline constexpr int kChunk = 64;                        // channels between barriers
inline constexpr int kChunkBytes = 2 * kChunk;           // of a row of 16-bit elements

// The four warps of a block: `row_warps` by sources, the rest by destinations. `resident`: the
// sources stay in shared memory; otherwise they are read again with every tile of destinations.
struct MatchCut {
  int row_warps = 4;
  bool resident = true;
  bool vector = false;  // every 8 channels of a token are 16-byte vectors

  FASTOPS_MERGE_HD constexpr int rows() const { return row_warps * kWarpRows; }
  FASTOPS_MERGE_HD constexpr int columns() const { return 4 / row_warps * kWarpColumns; }
  // `parts`: 16-bit numbers per element.
  constexpr size_t shared_bytes(int64_t chunks, int parts) const {
    const int64_t held = resident ? chunks : 2;
    return size_t(rows() * held + 2 * columns()) * kChunkBytes * size_t(parts);
  }
};

FASTOPS_MERGE_HD constexpr int64_t match_chunks(int64_t channels) {
  return channels > kChunk ? (channels + kChunk - 1) / kChunk : 1;
}

inline constexpr size_t kMatchStaticShared = 6 * 1024;  // more than the kernels' own

constexpr MatchCut plan_match(int64_t num_src, int64_t batch, int64_t channels, int parts,
                              int sm_count, int shared_limit) {
  const auto fits = [&](const MatchCut& cut) {
    return cut.shared_bytes(match_chunks(channels), parts) + kMatchStaticShared <=
           size_t(shared_limit);
  };
  MatchCut four{4}, two{2};
  const int64_t blocks = (num_src + four.rows() - 1) / four.rows() * batch;
  // Half the rows a block where that fills the device better, or lets the sources stay.
  const bool few = num_src <= two.rows() || blocks * 2 <= sm_count;
  if (!few && fits(four)) return four;
  if (fits(two)) return two;
  four.resident = false;
  return four;
}

}  // namespace fastops::merge::cuda
