#include "softmax/cuda/relatives/launch.cuh"
#include "softmax/cuda/relatives/topk.cuh"

namespace fastops::softmax::cuda {
namespace {

template <typename Acc>
void run(const TopkParams& p, void* stream) {
  if (p.backward)
    return launch(&topk_backward_kernel<Acc>,
                  row_launch("softmax topk backward", p.shape, 0, stream), p);
  const int64_t list = p.k <= kSharedChosen ? p.k * int64_t(sizeof(Chosen)) : 0;
  const int64_t row = kept_bytes(p.shape.n + list / int64_t(sizeof(Acc)), sizeof(Acc)) > 0
                          ? kept_bytes(p.shape.n, sizeof(Acc))
                          : 0;
  launch(&topk_kernel<Acc>, row_launch("softmax topk", p.shape, row + list, stream), p, row > 0,
         static_cast<int>(row));
}

}  // namespace

size_t topk_workspace(const TopkParams& p) {
  if (p.backward || p.k <= kSharedChosen) return 0;
  return static_cast<size_t>(p.shape.rows * p.k) * sizeof(Chosen);
}

void topk(const TopkParams& p, void* stream) {
  const DType other = p.backward ? p.out.dtype : p.values.dtype;
  if (accumulator(p.x.dtype, other) == DType::f64) run<double>(p, stream);
  else run<float>(p, stream);
}

}  // namespace fastops::softmax::cuda
