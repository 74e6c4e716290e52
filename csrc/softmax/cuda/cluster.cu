// The stream kernels over thread-block clusters (of one block too), fed by bulk copies: sm_90 alone
// has the instructions.
#include "softmax/cuda/launch.cuh"

namespace fastops::softmax::cuda {
namespace {

template <typename Op>
void run(const typename Op::Params& p, const Plan& plan, void* stream) {
  launch(&stream_kernel<Op, true>, config("softmax cluster", plan, stream), p, plan.slots);
}

template <typename In>
void run_forward_cluster(const ForwardParams& p, const Plan& plan, bool full, void* stream) {
  if (p.kind == Kind::softmax) {
    return full ? run<Forward<In, false, true>>(p, plan, stream)
                : run<Forward<In, false, false>>(p, plan, stream);
  }
  return full ? run<Forward<In, true, true>>(p, plan, stream)
              : run<Forward<In, true, false>>(p, plan, stream);
}

template <typename In>
void run_backward_cluster(const BackwardParams& p, const Plan& plan, bool full, void* stream) {
  if (p.kind == Kind::softmax) {
    return full ? run<Backward<In, false, true>>(p, plan, stream)
                : run<Backward<In, false, false>>(p, plan, stream);
  }
  return full ? run<Backward<In, true, true>>(p, plan, stream)
              : run<Backward<In, true, false>>(p, plan, stream);
}

}  // namespace

// The clusters of a stream kernel that the current device runs at a time, each block with all the
// shared memory of an SM.
fastops::cuda::ClusterCounts active_clusters() {
  static fastops::cuda::ActiveClusters clusters;
  const int shared = fastops::cuda::device_info().shared_optin - kStaticShared;
  return clusters.ask(&stream_kernel<Forward<float, false, false>, true>, kStreamBlock, shared);
}

void run_cluster(const ForwardParams& p, const Plan& plan, bool full, void* stream) {
  switch (p.x.dtype) {
    case DType::f64: return run_forward_cluster<double>(p, plan, full, stream);
    case DType::f16: return run_forward_cluster<__half>(p, plan, full, stream);
    case DType::bf16: return run_forward_cluster<__nv_bfloat16>(p, plan, full, stream);
    default: return run_forward_cluster<float>(p, plan, full, stream);
  }
}

void run_cluster(const BackwardParams& p, const Plan& plan, bool full, void* stream) {
  switch (p.y.dtype) {
    case DType::f64: return run_backward_cluster<double>(p, plan, full, stream);
    case DType::f16: return run_backward_cluster<__half>(p, plan, full, stream);
    case DType::bf16: return run_backward_cluster<__nv_bfloat16>(p, plan, full, stream);
    default: return run_backward_cluster<float>(p, plan, full, stream);
  }
}

}  // namespace fastops::softmax::cuda
