// Which kernel and which cut: pure functions of sizes, testable anywhere.
#pragma once

#include <cstdint>

#include "nm/nm.h"

namespace fastops::nm::cpu {

// Up to here a stream of weights costs less than padding the rows to whole vectors.
inline constexpr int64_t kStreamRows = 8;

// pairs, amx: the CPU has the instructions and x is bf16.
constexpr Kind plan(int64_t rows, bool transposed, bool pairs, bool amx) {
  if (transposed) return Kind::panels_transposed;
  if (amx && rows > kStreamRows) return Kind::amx_tiles;
  if (pairs) return Kind::pairs;
  return rows <= kStreamRows ? Kind::stream : Kind::panels;
}

// Rows that go through the weights together: their fp32 sums for one tile of outputs (1 KB a row)
// are to stay in L2.
inline constexpr int64_t kRowsTogether = 1024;

// Multiply-adds below which a second thread costs more to wake than it saves.
inline constexpr int64_t kWorkPerTask = 1 << 17;

}  // namespace fastops::nm::cpu
