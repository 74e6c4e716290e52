// From a plan to the ring kernels of one input dtype, shared by ring_*.cu: sm_90 alone has their
// instructions.
#pragma once

#include "softmax/cuda/launch.cuh"
#include "softmax/cuda/ring.cuh"

namespace fastops::softmax::cuda {

template <typename Op, bool kHolds>
void run_ring_of(const typename Op::Params& p, const Plan& plan, void* stream) {
  const auto ring = [&](auto* kernel) {
    launch(kernel, config("softmax ring", plan, stream), p,
           RingCut{plan.lanes, plan.group, plan.slots});
  };
  if (plan.vecs == 1) return ring(&ring_kernel<Op, 1, false>);
  if constexpr (kHolds) {
    if (plan.vecs == 8) return ring(&ring_kernel<Op, 8, false>);
    if (!plan.loop) return ring(&ring_kernel<Op, 4, false>);
  }
  ring(&ring_kernel<Op, 4, true>);
}

template <typename In>
void run_ring(const ForwardParams& p, const Plan& plan, void* stream) {
  if (p.kind == Kind::softmax) run_ring_of<Forward<In, false, false>, true>(p, plan, stream);
  else run_ring_of<Forward<In, true, false>, false>(p, plan, stream);
}

template <typename In>
void run_ring(const BackwardParams& p, const Plan& plan, void* stream) {
  if (p.kind == Kind::softmax) run_ring_of<Backward<In, false, false>, false>(p, plan, stream);
  else run_ring_of<Backward<In, true, false>, false>(p, plan, stream);
}

}  // namespace fastops::softmax::cuda
