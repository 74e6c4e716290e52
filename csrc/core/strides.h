// Walking several strided tensors together: drop, order and merge dims until few are left.
#pragma once

#include <cstdint>
#include <utility>

namespace fastops {

// One dim of a joint walk: its size and each operand's stride along it, in elements.
template <int Operands>
struct WalkDim {
  int64_t size;
  int64_t stride[Operands];
};

// Drops size-1 dims; returns the new count.
template <int Operands>
int drop_unit_dims(WalkDim<Operands>* dims, int count) {
  int kept = 0;
  for (int i = 0; i < count; ++i)
    if (dims[i].size != 1) dims[kept++] = dims[i];
  return kept;
}

// Orders dims by falling stride of operand `key`, ties by operand `tie`; stable otherwise.
template <int Operands>
void order_by_stride(WalkDim<Operands>* dims, int count, int key, int tie) {
  auto magnitude = [](int64_t s) { return s < 0 ? -s : s; };
  for (int i = 1; i < count; ++i)
    for (int j = i; j > 0; --j) {
      const int64_t a = magnitude(dims[j - 1].stride[key]), b = magnitude(dims[j].stride[key]);
      const bool swap =
          a != b ? a < b : magnitude(dims[j - 1].stride[tie]) < magnitude(dims[j].stride[tie]);
      if (!swap) break;
      std::swap(dims[j - 1], dims[j]);
    }
}

// Merges neighbours that every operand walks as one dim; returns the new count.
template <int Operands>
int merge_dims(WalkDim<Operands>* dims, int count) {
  if (count == 0) return 0;
  int last = 0;
  for (int i = 1; i < count; ++i) {
    bool mergeable = true;
    for (int k = 0; k < Operands; ++k)
      mergeable &= dims[last].stride[k] == dims[i].stride[k] * dims[i].size;
    if (mergeable) {
      dims[i].size *= dims[last].size;
      dims[last] = dims[i];
    } else {
      dims[++last] = dims[i];
    }
  }
  return last + 1;
}

}  // namespace fastops
