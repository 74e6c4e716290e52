// The stream kernels over thread-block clusters (of one block too), fed by bulk copies: sm_90 alone
// has the instructions.
#include <atomic>

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

// The most blocks of a stream kernel that the current device can launch as a cluster, each with all
// the shared memory of an SM. More than 8 need that many SMs in one GPC, which a part of a GPU
// (MIG) or one with SMs turned off may lack. Asked once per device; nothing waits for it.
int largest_cluster() {
#ifdef SIMT_HOST
  return kMaxClusterSize;
#else
  static std::atomic<int> known[64];  // device_info() refuses more devices
  const int shared = fastops::cuda::device_info().shared_optin - kStaticShared;
  int device = 0;
  fastops::cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  if (const int size = known[device].load(std::memory_order_relaxed)) return size;
  const auto kernel = &stream_kernel<Forward<float, false, false>, true>;
  const void* entry = reinterpret_cast<const void*>(kernel);
  const auto launches = [&](int size) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(size));
    config.blockDim = dim3(unsigned(kStreamBlock));
    config.dynamicSmemBytes = size_t(shared);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, entry, &config) == cudaSuccess)
      return clusters > 0;
    cudaGetLastError();  // the next launch must not report it
    return false;
  };
  using fastops::cuda::check;
  check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "softmax cluster");
  check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "softmax cluster");
  int size = kMaxClusterSize;
  while (size > 1 && !launches(size)) size /= 2;
  known[device].store(size, std::memory_order_relaxed);
  return size;
#endif
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
