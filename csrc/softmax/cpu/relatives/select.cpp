// Where the k greatest are too many to rank one against all: the standard library's selection, kept
// out of the files that are compiled per instruction set.
#include <algorithm>

#include "softmax/cpu/relatives/kernels.h"

namespace fastops::softmax::cpu {
namespace {

template <typename S>
void select(Scored<S>* candidates, int64_t count, int64_t k) {
  const auto before = [](const Scored<S>& a, const Scored<S>& b) {
    return a.score > b.score || (a.score == b.score && a.index < b.index);
  };
  if (k < count) std::nth_element(candidates, candidates + k, candidates + count, before);
  std::sort(candidates, candidates + k, before);
}

}  // namespace

void select_first(Scored<float>* candidates, int64_t count, int64_t k) {
  select(candidates, count, k);
}
void select_first(Scored<double>* candidates, int64_t count, int64_t k) {
  select(candidates, count, k);
}

}  // namespace fastops::softmax::cpu
