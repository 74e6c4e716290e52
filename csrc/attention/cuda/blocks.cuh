// The list of a row of blocks, as kernels walk it: cut into slots, of which a tile of columns has a
// fixed number, so that small blocks fill a tile together and a large one fills several.
#pragma once

#include "attention/attention.h"
#include "cuda/runtime.h"
#include "cuda/tile/reduce.cuh"

namespace fastops::attention::cuda {

inline constexpr int kWhole = -1;  // in place of a pattern
inline constexpr int kMostSlots = 16;
inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

using fastops::cuda::kAllLanes;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
__device__ __forceinline__ T* head_of(const Heads& t, int64_t b, int64_t h) {
  return static_cast<T*>(t.data) + b * t.stride[0] + h * t.stride[1];
}

// Which elements along the listed dimension a slot holds: [start, start + unit), start -1: none.
struct Slot {
  int start, pattern;
};

// Slots of one tile. `masked`: some element of it may not count.
struct Slots {
  Slot slot[kMostSlots];
  int masked;

  // Of column c, where its slot holds anything.
  __device__ __forceinline__ int64_t element(int c, int shift) const {
    return int64_t{slot[c >> shift].start} + (c & ((1 << shift) - 1));
  }
};

// Of 16, 32, 64 or 128.
__device__ __forceinline__ int shift_of(int size) {
  return size >= 128 ? 7 : size >= 64 ? 6 : size >= 32 ? 5 : 4;
}

// What row `at` of all lists has of an array of `most`, whatever the offsets hold.
struct Extent {
  int64_t first, count;
};
__device__ __forceinline__ Extent extent(const int64_t* offsets, int64_t at, int64_t most) {
  const auto clamp = [&](int64_t offset) { return min(max(offset, int64_t{0}), most); };
  const int64_t first = clamp(offsets[at]);
  return {first, max(clamp(offsets[at + 1]) - first, int64_t{0})};
}

// Where a list lies: kept in shared memory, as only one warp walks it.
struct Range {
  int64_t first, first_partial;
  int count, partial;
};

class List {
 public:
  // Row `row` of head (b, h). `block`: elements of a block along the list; `width`: of a warp's
  // columns; `length`: how many elements there are.
  __device__ __forceinline__ List(const BlockLists& lists, const BlockMask& mask, int64_t b,
                                  int64_t h, int64_t row, int block, int width, int64_t length)
      : List(lists, mask, Range{}, block, width, length) {
    if (dense()) {
      range_.count = int((length + block - 1) >> block_shift_);
      return;
    }
    const int64_t at =
        ((lists.batch > 1 ? b : 0) * lists.heads + (lists.heads > 1 ? h : 0)) * lists.rows + row;
    const Extent all = extent(lists.offsets, at, lists.nnz);
    const Extent partial = extent(lists.partial_offsets, at, lists.num_partial);
    range_ = {all.first, partial.first, int(all.count), int(min(partial.count, all.count))};
  }

  // The same, of which the range is known.
  __device__ __forceinline__ List(const BlockLists& lists, const BlockMask& mask,
                                  const Range& range, int block, int width, int64_t length)
      : lists_(lists),
        range_(range),
        block_shift_(shift_of(block)),
        unit_shift_(shift_of(min(block, width))),
        length_(int(length)),
        patterns_(int(min(mask.num_patterns, int64_t{1} << 30))) {}

  __device__ __forceinline__ const Range& range() const { return range_; }
  // Slots hold 1 << shift() elements.
  __device__ __forceinline__ int shift() const { return unit_shift_; }
  __device__ __forceinline__ int slots() const {
    return range_.count << (block_shift_ - unit_shift_);
  }

  // Slot i of the list; one outside it, or one that names what does not exist, is empty.
  __device__ __forceinline__ Slot slot(int i) const {
    const int parts_shift = block_shift_ - unit_shift_, at = i >> parts_shift;
    if (i < 0 || at >= range_.count) return {-1, kWhole};
    const int block = dense() ? at : lists_.indices[range_.first + at];
    if (block < 0 || int64_t{block} << block_shift_ >= length_) return {-1, kWhole};
    const int start = (block << block_shift_) + ((i & ((1 << parts_shift) - 1)) << unit_shift_);
    if (start >= length_) return {-1, kWhole};
    if (at >= range_.partial) return {start, kWhole};
    const int pattern = lists_.patterns[range_.first_partial + at];
    if (pattern < 0 || pattern >= patterns_) return {-1, kWhole};
    return {start, pattern};
  }

  __device__ __forceinline__ bool is_cut(Slot s) const {
    return s.start < 0 || s.pattern != kWhole || s.start + (1 << unit_shift_) > length_;
  }

 private:
  __device__ __forceinline__ bool dense() const { return lists_.offsets == nullptr; }

  const BlockLists& lists_;
  Range range_;
  int block_shift_, unit_shift_, length_, patterns_;
};

// Called by the whole first warp: slot `lane` of tile `tile`, held in a register until it is
// stored. All of a tile's slots: `per_tile`, at most kMostSlots. `absent`: empty ones before the
// list's first.
struct NextSlots {
  Slot mine{-1, kWhole};
  bool cut = false;

  __device__ __forceinline__ void load(const List& list, int tile, int per_tile, int lane,
                                       int absent = 0) {
    if (lane >= per_tile) return;
    mine = list.slot(tile * per_tile + lane - absent);
    cut = list.is_cut(mine);
  }
  __device__ __forceinline__ void store(Slots& to, int per_tile, int lane) const {
    const bool masked = __any_sync(kAllLanes, lane < per_tile && cut);
    if (lane < per_tile) to.slot[lane] = mine;
    if (lane == 0) to.masked = masked;
  }
};

// Which of 32 consecutive columns count for row `r` of the block, columns as bits. They are those
// from `column` on of a tile with slots of 1 << shift columns.
__device__ __forceinline__ unsigned row_bits(const BlockMask& mask, const Slots& slots, int column,
                                             int shift, int64_t length, int r) {
  const int width = min(1 << shift, 32), block_kv = int(mask.block_kv);
  unsigned keep = 0;
#pragma unroll 1
  for (int at = 0; at < 32; at += width) {
    const Slot s = slots.slot[(column + at) >> shift];
    if (s.start < 0) continue;
    const int first = s.start + ((column + at) & ((1 << shift) - 1));
    unsigned bits = 0xffffffffu;
    if (s.pattern != kWhole) {
      const int bit = r * block_kv + (first & (block_kv - 1));
      bits = mask.bits[int64_t{s.pattern} * (mask.block_q * block_kv / 32) + bit / 32] >> bit % 32;
    }
    const int64_t left = min(length - first, int64_t{width});
    if (left < 32) bits &= left > 0 ? (1u << left) - 1 : 0;
    keep |= bits << at;
  }
  return keep;
}

// The same with queries as columns: which of 16 keys, from `r` of the block on, count for column c.
__device__ __forceinline__ unsigned column_bits(const BlockMask& mask, const Slots& slots, int c,
                                                int shift, int64_t length, int r) {
  const Slot s = slots.slot[c >> shift];
  const int64_t query = slots.element(c, shift);
  if (s.start < 0 || query >= length) return 0;
  if (s.pattern == kWhole) return 0xffffu;
  const int block_q = int(mask.block_q), block_kv = int(mask.block_kv);
  const int bit = (int(query) & (block_q - 1)) * block_kv + r;
  return mask.bits[int64_t{s.pattern} * (block_q * block_kv / 32) + bit / 32] >> bit % 32;
}

// Whether one element counts: row r of its block, and element `offset` of a slot.
template <bool kByKey>
__device__ __forceinline__ bool keeps(const BlockMask& mask, Slot s, int offset, int64_t length,
                                      int r) {
  if (s.start < 0 || s.start + offset >= length) return false;
  if (s.pattern == kWhole) return true;
  const int block_q = int(mask.block_q), block_kv = int(mask.block_kv);
  const int c = (s.start + offset) & ((kByKey ? block_q : block_kv) - 1);
  const int bit = kByKey ? c * block_kv + r : r * block_kv + c;
  return mask.bits[int64_t{s.pattern} * (block_q * block_kv / 32) + bit / 32] >> bit % 32 & 1;
}

// Over the four lanes that hold one row of a tensor core's result.
__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 1));
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 2));
  return v;
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  v += __shfl_xor_sync(kAllLanes, v, 2);
  return v;
}

}  // namespace fastops::attention::cuda
