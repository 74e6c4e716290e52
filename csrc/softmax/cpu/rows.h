// What every kernel of the family asks about a row: where it starts in each operand, and how many
// of its elements take part. Internal linkage, as everything compiled per instruction set.
#pragma once

#include "softmax/softmax.h"

namespace fastops::softmax::cpu {
namespace {

inline int64_t clamp_length(int64_t length, int64_t n) {
  return length < 0 ? 0 : length < n ? length : n;
}

// No operand but x, and a scale that keeps the order of the scores.
inline bool plain_scores(const ForwardParams& p) {
  return !p.mask && !p.bias && !p.lengths && !p.row_scale && !p.causal && p.scale > 1e-20 &&
         p.scale < 1e20;
}

// A walk over the rows in order. offset(strides) is the row's place in an operand, in elements.
class RowCursor {
 public:
  RowCursor(const Shape& shape, int64_t row) : shape_(shape) {
    for (int d = shape.row_dims - 1; d >= 0; --d) {
      at_[d] = row % shape.row_size[d];
      row /= shape.row_size[d];
    }
  }

  void next() {
    for (int d = shape_.row_dims - 1; d >= 0; --d) {
      if (++at_[d] < shape_.row_size[d]) return;
      at_[d] = 0;
    }
  }

  int64_t offset(const int64_t* stride) const {
    int64_t sum = 0;
    for (int d = 0; d < shape_.row_dims; ++d) sum += at_[d] * stride[d];
    return sum;
  }

  // A per-row operand (row_scale, lse, dlse) in its own floating type.
  template <typename T>
  T& at(const Operand& operand) const {
    return static_cast<T*>(operand.data)[offset(operand.row_stride)];
  }

  // Elements [0, length) may take part: lengths and causal together.
  template <typename Params>
  int64_t length(const Params& p) const {
    int64_t length = p.shape.n;
    if (p.lengths) {
      length = clamp_length(
          p.lengths.dtype == DType::i64 ? at<int64_t>(p.lengths) : at<int32_t>(p.lengths), length);
    }
    if (p.causal) length = clamp_length(offset(p.query_stride) + p.causal_offset + 1, length);
    return length;
  }

 private:
  const Shape& shape_;
  int64_t at_[kMaxRowDims] = {};
};

}  // namespace
}  // namespace fastops::softmax::cpu
