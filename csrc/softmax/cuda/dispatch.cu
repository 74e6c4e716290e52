// The entry points of the CUDA backend: ask the device what it is, plan, run. Params::algorithm
// chooses nothing here: every kernel keeps the row on the chip, or sweeps it twice where it cannot.
#include "cuda/hopper.h"
#include "cuda/launch.h"
#include "softmax/cuda/heuristics.h"

namespace fastops::softmax::cuda {

template <typename In>
void run_forward(const ForwardParams& p, const Plan& plan, bool full, void* stream);
template <typename In>
void run_backward(const BackwardParams& p, const Plan& plan, bool full, void* stream);
template <typename Acc>
void run_strided(const ForwardParams& p, const Plan& plan, bool rows_fast, void* stream);
template <typename Acc>
void run_strided(const BackwardParams& p, const Plan& plan, bool rows_fast, void* stream);

#ifdef FASTOPS_CUDA_SM90
fastops::cuda::ClusterCounts active_clusters();
#else
inline fastops::cuda::ClusterCounts active_clusters() { return {}; }
#endif

namespace {

Device current_device() {
  const fastops::cuda::DeviceInfo info = fastops::cuda::device_info();
  const bool hopper = fastops::cuda::hopper_enabled(info);
  return {info.sm_count, info.major,
          info.minor,    info.shared_optin,
          hopper,        hopper ? active_clusters() : fastops::cuda::ClusterCounts{}};
}

template <typename Params>
size_t workspace(const Params& p) {
  return plan(problem(p), current_device()).workspace_bytes;
}

void run(DType in, const ForwardParams& p, const Plan& plan, bool full, void* stream) {
  switch (in) {
    case DType::f64: return run_forward<double>(p, plan, full, stream);
    case DType::f16: return run_forward<__half>(p, plan, full, stream);
    case DType::bf16: return run_forward<__nv_bfloat16>(p, plan, full, stream);
    default: return run_forward<float>(p, plan, full, stream);
  }
}

void run(DType in, const BackwardParams& p, const Plan& plan, bool full, void* stream) {
  switch (in) {
    case DType::f64: return run_backward<double>(p, plan, full, stream);
    case DType::f16: return run_backward<__half>(p, plan, full, stream);
    case DType::bf16: return run_backward<__nv_bfloat16>(p, plan, full, stream);
    default: return run_backward<float>(p, plan, full, stream);
  }
}

DType accumulation(const ForwardParams& p) {
  return p.out ? accumulator(p.x.dtype, p.out.dtype) : accumulator(p.x.dtype, p.x.dtype);
}
DType accumulation(const BackwardParams& p) { return accumulator(p.y.dtype, p.dx.dtype); }

template <typename Params>
void run(const Params& p, void* stream) {
  const Problem q = problem(p);
  const Plan chosen = plan(q, current_device());
  if (chosen.kernel != Kernel::strided)
    return run(q.in, p, chosen, q.full || chosen.beyond, stream);
  return accumulation(p) == DType::f64 ? run_strided<double>(p, chosen, q.rows_fast, stream)
                                       : run_strided<float>(p, chosen, q.rows_fast, stream);
}

}  // namespace

size_t forward_workspace(const ForwardParams& p) { return workspace(p); }
size_t backward_workspace(const BackwardParams& p) { return workspace(p); }
void forward(const ForwardParams& p, void* stream) { run(p, stream); }
void backward(const BackwardParams& p, void* stream) { run(p, stream); }

}  // namespace fastops::softmax::cuda
