// Which kernel and which cut: pure functions of sizes, testable anywhere.
#pragma once

#include <cstdint>

#include "nm/nm.h"

namespace fastops::nm::cpu {

// Up to here a stream of weights costs less than padding the rows to whole vectors.
inline constexpr int64_t kStreamRows = 8;

// Where a CPU issues products of pairs (vdpbf16ps) slowly they gain only while the weights' memory
// is waited for. Intel's: one for four multiply-adds; AMD's: as many.
inline constexpr int64_t kSlowPairRows = 2;

// From here on packing pairs of activations costs less than looking them up.
inline constexpr int64_t kPairPanelRows = 64;

// Whether pairs are to be packed: the two kept of four, or nearly all.
constexpr bool packs_pairs(Pattern pattern) {
  return (pattern.n == 2 && pattern.m == 4) || pattern.n * 3 >= pattern.m * 2;
}

// What the CPU can do with bf16, and whether it does it well.
struct Bf16 {
  bool pairs = false, fast_pairs = false, amx = false;
};

constexpr Kind plan(Pattern pattern, int64_t rows, bool transposed, Bf16 bf16) {
  if (transposed) return Kind::panels_transposed;
  const bool few = rows <= kStreamRows;
  if (bf16.amx && !few) return Kind::amx_tiles;
  if (bf16.fast_pairs && packs_pairs(pattern) && rows >= kPairPanelRows) return Kind::pair_panels;
  if (bf16.pairs && (rows <= kSlowPairRows || bf16.fast_pairs)) return Kind::pairs;
  return few ? Kind::stream : Kind::panels;
}

// Rows that go through the weights together: their fp32 sums for one tile of outputs (1 KB a row)
// are to stay in L2.
inline constexpr int64_t kRowsTogether = 1024;

// Bytes of the weights to fetch ahead of a stream: without, Intel's cores read memory at four
// fifths of their speed. AMD's do best alone where the stream is hardly more than read; with more
// rows so little of it fits in the window of instructions that they are to ask for it as well.
inline constexpr int64_t kStreamAhead = 1536, kAmdStreamAhead = 4096;
inline constexpr int64_t kReadRows = 2;

// Multiply-adds below which a second thread costs more to wake than it saves.
inline constexpr int64_t kWorkPerTask = 1 << 17;

}  // namespace fastops::nm::cpu
