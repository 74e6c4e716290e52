#include "softmax/cuda/relatives/launch.cuh"
#include "softmax/cuda/relatives/maps.cuh"

namespace fastops::softmax::cuda {
namespace {

template <typename Acc>
void run(const MapParams& p, void* stream) {
  const int64_t shared = kept_bytes(p.shape.n, sizeof(Acc));
  const auto go = [&](const char* name, auto* kernel) {
    launch(kernel, row_launch(name, p.shape, shared, stream), p, shared > 0);
  };
  if (!p.backward) return go("softmax map", &map_forward_kernel<Acc>);
  if (p.map == Map::entmax && !p.target)
    return go("softmax entmax backward", &entmax_backward_kernel<Acc>);
  go("softmax map backward", &map_backward_kernel<Acc>);
}

}  // namespace

size_t map_workspace(const MapParams&) { return 0; }

void map(const MapParams& p, void* stream) {
  const DType out = p.out ? p.out.dtype : p.x.dtype;
  if (accumulator(p.x.dtype, out) == DType::f64) run<double>(p, stream);
  else run<float>(p, stream);
}

}  // namespace fastops::softmax::cuda
