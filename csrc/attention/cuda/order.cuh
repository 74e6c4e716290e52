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

__device__ __forceinline__ Turn turn_of(const RowOrder& o, unsigned block) {
  const unsigned part = block % o.parts, at = block / o.parts;
  const unsigned listed = o.section_lists * o.rows;
  const unsigned section = at / (listed * o.section_heads);
  const unsigned within = at % (listed * o.section_heads);
  unsigned row = within / o.section_heads;
  if (o.order) row = unsigned(o.order[section / o.repeats * listed + row]);
  const unsigned list = section * o.section_lists + row / o.rows;
  const unsigned head = list * o.section_heads + within % o.section_heads;
  const unsigned outer = head / o.inner, inner = head % o.inner,
                 tile = row % o.rows * o.parts + part;
  return o.samples_inner ? Turn{inner, outer, tile} : Turn{outer, inner, tile};
}

}  // namespace fastops::attention::cuda
