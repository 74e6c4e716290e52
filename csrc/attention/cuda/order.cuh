// Which rows a thread block has.
#pragma once

#include "attention/cuda/heuristics.h"
#include "cuda/runtime.h"

namespace fastops::attention::cuda {

// Tile `tile` of head `h` (of a pack of heads) of sample `b`. Where rows are cut into several
// tiles, those of the last may lie past the end.
struct Turn {
  unsigned b, h, tile;
};

// Row `row` (list * rows + row) of a section, of head `of_list` of its list.
__device__ __forceinline__ Turn turn_at(const RowOrder& o, unsigned section, unsigned row,
                                        unsigned of_list, unsigned part) {
  const unsigned list = section * o.section_lists + row / o.rows;
  const unsigned head = list * o.section_heads + of_list;
  const unsigned outer = head / o.inner, inner = head % o.inner;
  const unsigned tile = row % o.rows * o.parts + part;
  return o.samples_inner ? Turn{inner, outer, tile} : Turn{outer, inner, tile};
}

__device__ __forceinline__ Turn turn_of(const RowOrder& o, unsigned block) {
  const unsigned part = block % o.parts, at = block / o.parts;
  const unsigned listed = o.section_lists * o.rows;
  const unsigned section = at / (listed * o.section_heads);
  const unsigned within = at % (listed * o.section_heads);
  unsigned row = within / o.section_heads;
  if (o.order) row = unsigned(o.order[section / o.repeats * listed + row]);
  return turn_at(o, section, row, within % o.section_heads, part);
}

}  // namespace fastops::attention::cuda
