// One row of a block mask, checked as it is read: the lists may hold anything.
#pragma once

#include "attention/attention.h"

namespace fastops::attention::cpu {
namespace {

inline int64_t clamp(int64_t v, int64_t low, int64_t high) {
  return v < low ? low : v > high ? high : v;
}

struct ListRow {
  const int32_t* indices = nullptr;  // nullptr: every block, in order
  const int32_t* patterns = nullptr;
  int64_t count = 0, partial = 0, columns = 0, num_patterns = 0;

  // Block i of the row, -1 if there is no such block; its pattern, or -1 if it is kept whole.
  int64_t block(int64_t i) const {
    if (!indices) return i;
    const int64_t block = indices[i];
    if (block < 0 || block >= columns) return -1;
    if (i < partial && (patterns[i] < 0 || patterns[i] >= num_patterns)) return -1;
    return block;
  }
  int64_t pattern(int64_t i) const { return i < partial ? patterns[i] : -1; }
};

inline ListRow list_row(const BlockLists& lists, int64_t num_patterns, int64_t batch, int64_t head,
                        int64_t row) {
  ListRow r;
  r.columns = lists.columns;
  r.num_patterns = num_patterns;
  if (!lists.offsets) {
    r.count = lists.columns;
    return r;
  }
  const int64_t sample = lists.batch == 1 ? 0 : batch, each = lists.heads == 1 ? 0 : head;
  const int64_t at = (sample * lists.heads + each) * lists.rows + row;
  const int64_t begin = clamp(lists.offsets[at], 0, lists.nnz);
  const int64_t first = clamp(lists.partial_offsets[at], 0, lists.num_partial);
  r.indices = lists.indices + begin;
  r.count = clamp(lists.offsets[at + 1], begin, lists.nnz) - begin;
  r.patterns = lists.patterns + first;
  r.partial = clamp(lists.partial_offsets[at + 1], first, lists.num_partial) - first;
  if (r.partial > r.count) r.partial = r.count;
  // An empty tensor may have no address, which would read as "every block".
  if (!lists.indices) r.indices = reinterpret_cast<const int32_t*>(&lists);
  return r;
}

}  // namespace
}  // namespace fastops::attention::cpu
