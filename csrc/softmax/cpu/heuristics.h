// Which kernel, how many rows per task, when to stream: pure functions of sizes, testable anywhere.
// The measurements behind the numbers are from Zen 4 (32 KB L1, 1 MB L2, 32 MB L3) and Sapphire
// Rapids (48 KB L1, 2 MB L2).
#pragma once

#include <cstdint>

#include "softmax/softmax.h"

namespace fastops::softmax::cpu {

// Elements handled between two looks at the maximum: with its scratch it sits in L1.
inline constexpr int64_t kChunk = 1024;

// Rows up to here keep their exponentials in a scratch row (two 4 MB rows stay in L3).
inline constexpr int64_t kScratchElements = int64_t{1} << 20;

// Neighbours in memory that end within vectors, and the shortest rows, are taken as one line of
// vectors, as many rows at a time as a vector has lanes: at 197 elements fp32 takes 5.8 ms for 64
// MB instead of 10.6, at 1001 5.8 instead of 9.4, at 64 7.5 instead of 8.1; of whole vectors it is
// behind from 128 elements on. Longer ones would make long sums, and few tasks of few rows.
inline constexpr int64_t kFlatShortRow = 96, kFlatVectors = 128;
constexpr bool flat_row(int64_t n, int64_t vector) {
  return n <= kFlatShortRow || (n % (2 * vector) != 0 && n <= kFlatVectors * vector);
}

// The same backward: 64 MB of bf16 rows of 577 take 5 ms instead of 13, fp32 ones of 197 8 instead
// of 10.
constexpr bool flat_backward_row(int64_t n, int64_t vector, DType dtype) {
  const int64_t longest = (size_of(dtype) == 2 ? kFlatVectors : kFlatVectors / 2) * vector;
  return n >= vector && n <= longest && n % (2 * vector) != 0;
}

// Backward rows of up to kShortRow elements need not be written past the caches. Plain ones whose
// inputs, so many bytes an element, stay in L2 between the sum and its use (two rows at a time) are
// taken by themselves: a loop that applied one row while it summed the next took a sixth longer at
// 4096 to 32768 elements.
inline constexpr int64_t kShortRow = 256;
inline constexpr int64_t kShortRowBytes = int64_t{256} << 10;
constexpr bool short_backward_row(int64_t n, int64_t bytes) { return n * bytes <= kShortRowBytes; }
// Those whose inputs stay in L1.
inline constexpr int64_t kL1RowBytes = 8192;
constexpr bool in_l1_backward(int64_t n, int64_t bytes) { return n * bytes <= kL1RowBytes; }

// Other rows of up to so many bytes are taken as many at a time as a vector has lanes: ahead by a
// half at 64 fp32 elements, 4 % at 160. Of 256, where a group no longer fits in L1, they are ahead
// by a tenth on Zen 4 and behind by 3 % on a Sapphire Rapids; of 200, which end within a vector,
// behind by a seventh on Zen 4.
inline constexpr int64_t kSmallRowBytes = 768;
inline constexpr int64_t kSmallWholeRow = 256;  // elements, in whole units of `unit`
constexpr bool small_row(int64_t n, int64_t bytes, int64_t unit) {
  return bytes <= kSmallRowBytes || (n <= kSmallWholeRow && n % unit == 0);
}
// The same with masks, biases or per-row operands, in elements.
inline constexpr int64_t kSmallScoreRow = 384;

// Below this many elements a second thread costs more to wake than it saves: at twice as many two
// threads of a running pool are ahead by 5 %.
inline constexpr int64_t kElementsPerTask = 8192;

// Rows that are shared between threads, or do not fit in scratch, are cut into pieces of this many
// elements.
inline constexpr int64_t kSplit = 65536;

// Fewer rows than this would leave threads idle (or one with a row more than the rest).
inline constexpr int64_t kFewRows = 8;

// Whether all threads work on one row after the other. Never a question of how many threads there
// are: the result must not depend on it.
constexpr bool share_rows(int64_t rows, int64_t n) {
  return n > kScratchElements || (rows < kFewRows && n >= 2 * kSplit);
}

// Reading a row twice beats a scratch row only where there is none: 64 MB of rows of 1M elements
// take 4.3 ms from scratch, 6.2 ms read twice by either algorithm, 8.1 ms in three passes.
constexpr Algorithm choose(Algorithm asked, bool exact_fma = true) {
  if (asked == Algorithm::automatic) return Algorithm::online;
  return asked == Algorithm::two_pass && !exact_fma ? Algorithm::online : asked;
}
// One element needs no algorithm: its probability is 1 to the last bit.
constexpr bool reread_rows(Algorithm algorithm, int64_t rows, int64_t n) {
  return n > 1 && (choose(algorithm) != Algorithm::online || share_rows(rows, n));
}

// Whole rows per task of parallel_for.
constexpr int64_t rows_per_task(int64_t n) {
  const int64_t rows = kElementsPerTask / (n > 0 ? n : 1);
  return rows > 0 ? rows : 1;
}

// Rows side by side without other operands are taken so many at a time, if the scratch of so few
// stays in L3, and so many times as many, up to kMostColumnBlocks, as fit in kColumnScratch: what a
// row's elements lie apart costs more than leaving L2 (4096 of 16 KB: 12.5 ms by one block, 9 by
// two, 8 by four).
inline constexpr int64_t kColumnBlock = 32;
inline constexpr int64_t kMostColumnBlocks = 4;
inline constexpr int64_t kColumnElements = 65536;
inline constexpr int64_t kColumnScratch = int64_t{2} << 20;

// Streaming stores skip the read of the line they overwrite, but leave the result in memory: they
// win once input and output together do not stay in the cache anyway.
inline constexpr int64_t kStreamBytes = int64_t{8} << 20;
constexpr bool use_streaming(int64_t bytes_written) { return bytes_written >= kStreamBytes; }

}  // namespace fastops::softmax::cpu
