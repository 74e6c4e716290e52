// Rows that top-k takes from where they lie, in groups of as many as a vector has lanes: what is
// left of each is brought to an end a row a lane.
#pragma once

#include "softmax/cpu/relatives/rows.h"

namespace fastops::softmax::cpu {

namespace FASTOPS_ISA {
// The greatest alone (k = 1) of rows of plain_topk.
void topk_first(const TopkParams&);
// One row of any kind, one without a score above -inf, with a NaN or with an infinity too.
void topk_row(const TopkParams&, int64_t row);
}  // namespace FASTOPS_ISA

namespace {

// Places in a row are kept in the accumulation type, which is exact so far.
inline constexpr int64_t kExactPlaces = int64_t{1} << 24;

// Whether rows can be taken from where they lie.
inline bool plain_topk(const TopkParams& p) {
  return p.scale == 1 && !p.mask && !p.lengths && !p.row_scale && !p.causal &&
         p.values_stride == 1 && p.indices_stride == 1 && contiguous(p.shape, p.x) &&
         p.shape.n < kExactPlaces;
}

// group(first row, how many) for groups that cover the rows, spread over threads; it returns which
// of them it has done, and the others are taken one by one.
template <typename V, typename F>
inline void for_groups(const TopkParams& p, const F& group) {
  constexpr int64_t kTogether = 65536;  // elements, which stay in L2
  const Shape& shape = p.shape;
  const int64_t fit = kTogether / shape.n, most = fit < 1 ? 1 : fit < V::size ? fit : V::size;
  parallel_for(0, (shape.rows + most - 1) / most, rows_per_task(shape.n * most),
               [&](int64_t begin, int64_t end) {
                 for (int64_t g = begin; g < end; ++g) {
                   const int64_t row = g * most, left = shape.rows - row;
                   const int count = int(left < most ? left : most);
                   const unsigned done = group(RowCursor(shape, row), count);
                   for (int r = 0; r < count; ++r)
                     if (!(done >> r & 1)) FASTOPS_ISA::topk_row(p, row + r);
                 }
               });
}

// Where each of `count` rows from the cursor on begins in an operand.
inline void offsets(const Shape& shape, RowCursor cursor, int count, const Operand& o,
                    int64_t* to) {
  if (shape.row_dims == 1) {
    const int64_t begin = cursor.offset(o.row_stride);
    for (int r = 0; r < count; ++r) to[r] = begin + r * o.row_stride[0];
    return;
  }
  for (int r = 0; r < count; ++r, cursor.next()) to[r] = cursor.offset(o.row_stride);
}

// each(r, values, indices), which writes row r's results there, for those of `count` rows from the
// cursor on that are done; and lse[r] beside.
template <typename V, typename S, typename F>
inline void write_groups(const TopkParams& p, const RowCursor& start, int count, unsigned done,
                         const S* lse, const F& each) {
  int64_t values_at[V::size], indices_at[V::size], lse_at[V::size];
  offsets(p.shape, start, count, p.values, values_at);
  offsets(p.shape, start, count, p.indices, indices_at);
  if (p.lse) offsets(p.shape, start, count, p.lse, lse_at);
  with_float(p.values.dtype, [&](auto t) {
    using Out = decltype(t);
    for (int r = 0; r < count; ++r) {
      if (!(done >> r & 1)) continue;
      each(r, static_cast<Out*>(p.values.data) + values_at[r],
           static_cast<int64_t*>(p.indices.data) + indices_at[r]);
      if (p.lse) static_cast<S*>(p.lse.data)[lse_at[r]] = lse[r];
    }
  });
}

}  // namespace
}  // namespace fastops::softmax::cpu
