// Walks the blocks of a list row, some of them at a time, and what a block needs besides: its bias
// and its element mask as lanes.
#pragma once

#include "attention/cpu/lists.h"
#include "attention/cpu/tiles.h"
#include "cpu/exp_weight.h"

namespace fastops::attention::cpu::FASTOPS_ISA {
namespace {

inline char* row_at(const Heads& t, DType dtype, int64_t b, int64_t h, int64_t row) {
  return static_cast<char*>(t.data) +
         (b * t.stride[0] + h * t.stride[1] + row * t.stride[2]) * int64_t(size_of(dtype));
}

// Groups of listed blocks, or of parts of them, that together have at most Rows rows; each is
// filled up to what sums over rows take at once.
template <typename F, int Rows>
class Chunks {
 public:
  Chunks(const ListRow& list, const BlockMask& mask, int64_t length, int64_t block)
      : list_(list), mask_(mask), length_(length), size_(block) {}

  bool next() {
    count = rows = 0;
    while (i_ < list_.count && rows < Rows && count < kSegments) {
      const int64_t block = list_.block(i_);
      const int64_t first = block * size_ + done_, left = at_most(length_ - first, size_ - done_);
      if (block < 0 || left <= 0) {
        ++i_;
        done_ = 0;
        continue;
      }
      // Blocks are cut only where none would fit whole: at multiples of 64 rows.
      const int64_t part = at_most(size_, Rows), n = at_most(left, part);
      const int64_t padded = round_up(n, F::pad);
      if (rows + padded > Rows) break;
      const int64_t pattern = list_.pattern(i_);
      const uint32_t* bits =
          pattern < 0 ? nullptr : mask_.bits + pattern * (mask_.block_q * mask_.block_kv / 32);
      segments[count++] = {first, n, rows, done_, first / F::unit(size_), bits};
      rows += padded;
      done_ += n;
      if (n == left) {
        ++i_;
        done_ = 0;
      }
    }
    return count > 0;
  }

  // More fit only if a list names the short block at the end many times.
  static constexpr int64_t kSegments = Rows / 16;
  Segment segments[kSegments];
  int64_t count = 0, rows = 0;

 private:
  const ListRow& list_;
  const BlockMask& mask_;
  int64_t length_, size_;
  int64_t i_ = 0, done_ = 0;
};

// key_bias of `count` keys, times `unit`; zeros where there is none.
inline void load_bias(const Problem& p, int64_t b, int64_t h, int64_t key, int64_t count,
                      float unit, float* to) {
  if (!p.key_bias) {
    for (int64_t i = 0; i < count; i += L) VecF32(0.f).store(to + i);
    return;
  }
  const int64_t step = p.key_bias_stride[2];
  const float* from = p.key_bias + b * p.key_bias_stride[0] + h * p.key_bias_stride[1] + key * step;
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * step] * unit;
}

// lanes[c]: bit i tells whether query in_block + i keeps key c of the segment.
inline void lane_masks(const Segment& s, int64_t block_kv, int64_t in_block, int64_t queries,
                       uint32_t* lanes) {
  for (int64_t c = 0; c < s.count; c += 32) {
    const int64_t width = at_most(block_kv, 32);
    uint32_t words[32];
    for (int64_t i = 0; i < 32; ++i)
      words[i] =
          i < queries ? row_bits(s.bits, (in_block + i) * block_kv + s.in_block + c, width) : 0;
    transpose_bits(words);
    for (int64_t i = 0; i < at_most(s.count - c, 32); ++i) lanes[c + i] = words[i];
  }
}

}  // namespace
}  // namespace fastops::attention::cpu::FASTOPS_ISA
