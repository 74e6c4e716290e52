// Sorting rows by the length of their lists (heuristics.h says why), before a pass.
#pragma once

#include <cstddef>

#include "attention/cuda/heuristics.h"

namespace fastops::attention::cuda {

// The order in which thread blocks of a pass take rows, sorted into p.workspace by a kernel of its
// own where that may matter. `tile_rows`, `pack`: of a tile of rows by key or by query; `resident`:
// tiles that an SM has at once, at least.
RowOrder order_rows(const Problem& p, bool by_key, int64_t tile_rows, int64_t pack, int resident,
                    void* stream);
size_t order_workspace(const BlockLists& lists);  // bytes
void sort_rows(const BlockLists& lists, RowOrder& order, void* workspace, void* stream);

// The same of the Hopper forward, which also splits rows.
struct HopperOrder {
  RowOrder order;
  RowSplits splits;
};
HopperOrder plan_hopper_order(const Problem& p, const HopperCut& cut);
size_t hopper_order_workspace(const Problem& p, const HopperCut& cut);
HopperOrder order_hopper_rows(const Problem& p, const HopperCut& cut, void* stream);
// `tile_rows`, `channels`: of a result.
void split_rows(const BlockLists& lists, RowOrder& order, RowSplits& splits, size_t tile_rows,
                size_t channels, void* workspace, void* stream);

}  // namespace fastops::attention::cuda
