#include "cuda/launch.h"
#include "merge/cuda/backward.cuh"
#include "merge/cuda/launch.h"

namespace fastops::merge::cuda {
namespace {

// Whether every row of a tensor starts at, and is a multiple of, 16 bytes.
bool whole_vectors(const Rows& rows) {
  if (!rows.data) return true;
  const auto width = int64_t(16 / size_of(rows.dtype));
  return rows.stride[3] == 1 && rows.channels % width == 0 && rows.stride[0] % width == 0 &&
         rows.stride[1] % width == 0 && rows.stride[2] % width == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

fastops::cuda::Launch config(const char* name, int64_t warps, int tensors, void* stream) {
  const int64_t blocks = (warps + kRowWarps - 1) / kRowWarps;
  return {name, dim3(unsigned(blocks), unsigned(tensors)), dim3(kRowThreads), 0, 1, stream};
}

int64_t most_middle(const Rows* rows, int tensors) {
  int64_t most = 1;
  for (int t = 0; t < tensors; ++t) most = rows[t].middle > most ? rows[t].middle : most;
  return most;
}

}  // namespace

void merge(const MergeParams& p, void* stream) {
  bool vectors = true;
  for (int t = 0; t < p.tensors; ++t) vectors &= whole_vectors(p.x[t]) && whole_vectors(p.y[t]);
  const int64_t warps = p.plan.batch * p.plan.num_out * most_middle(p.x, p.tensors);
  const auto c = config("merge rows", warps, p.tensors, stream);
  vectors ? launch(&merge_kernel<true>, c, p) : launch(&merge_kernel<false>, c, p);
}

void merge_backward(const MergeBackwardParams& p, void* stream) {
  bool vectors = true;
  for (int t = 0; t < p.tensors; ++t)
    vectors &= whole_vectors(p.dy[t]) && whole_vectors(p.dx[t]) && whole_vectors(p.x[t]) &&
               whole_vectors(p.y[t]);
  const int64_t tokens = p.plan.batch * p.plan.num_tokens;
  if (p.mode == Mode::mean || p.mode == Mode::sum) {
    const auto c = config("merge token gradient", tokens, 1, stream);
    return vectors ? launch(&token_gradient_kernel<true>, c, p)
                   : launch(&token_gradient_kernel<false>, c, p);
  }
  const auto zero =
      config("merge zero gradient", tokens * most_middle(p.dx, p.tensors), p.tensors, stream);
  vectors ? launch(&zero_gradient_kernel<true>, zero, p)
          : launch(&zero_gradient_kernel<false>, zero, p);
  if (p.plan.num_out == 0) return;
  const auto c = config("merge row gradient", p.plan.batch * p.plan.num_out, 1, stream);
  vectors ? launch(&row_gradient_kernel<true>, c, p) : launch(&row_gradient_kernel<false>, c, p);
}

void unmerge(const UnmergeParams& p, void* stream) {
  const bool vectors = whole_vectors(p.y) && whole_vectors(p.residual) && whole_vectors(p.out);
  const auto c = config("unmerge rows", p.plan.batch * p.plan.num_tokens * p.out.middle, 1, stream);
  vectors ? launch(&unmerge_kernel<true>, c, p) : launch(&unmerge_kernel<false>, c, p);
}

}  // namespace fastops::merge::cuda
