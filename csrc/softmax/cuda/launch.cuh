// From a plan to kernels: the instantiations of one input dtype, shared by forward_*.cu and
// backward_*.cu.
#pragma once

#include "cuda/launch.h"
#include "softmax/cuda/heuristics.h"
#include "softmax/cuda/split.cuh"
#include "softmax/cuda/stream.cuh"
#include "softmax/cuda/walk.cuh"

namespace fastops::softmax::cuda {

using fastops::cuda::launch;
using fastops::cuda::Launch;

// Blocks over x and y, as linear_block() reads them; the last row of blocks may overhang.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t kMaxX = int64_t(1) << 30;
  return blocks <= kMaxX
             ? dim3(static_cast<unsigned>(blocks))
             : dim3(static_cast<unsigned>(kMaxX), static_cast<unsigned>(ceil_div(blocks, kMaxX)));
}

inline Launch config(const char* name, const Plan& plan, void* stream) {
  return {name,
          grid_of(plan.blocks),
          dim3(static_cast<unsigned>(plan.threads)),
          plan.shared_bytes,
          plan.kernel == Kernel::cluster ? static_cast<unsigned>(plan.blocks_per_row) : 1u,
          stream};
}

// The kernels for rows that lie contiguously. Stream kernels over clusters are compiled for sm_90
// alone, in cluster.cu.
template <typename Op>
void run_contiguous(const typename Op::Params& p, const Plan& plan, void* stream) {
  constexpr bool kFewVariants = Op::kFull || sizeof(typename Op::In) == 8;
  const auto rows = [&](auto* kernel) {
    launch(kernel, config("softmax rows", plan, stream), p, plan.lanes);
  };
  switch (plan.kernel) {
    case Kernel::rows:
      if constexpr (kFewVariants) {
        return plan.vecs == 1 ? rows(&rows_kernel<Op, 1, 1>) : rows(&rows_kernel<Op, 4, 1>);
      } else {
        constexpr bool kBackward = std::is_same_v<typename Op::Params, BackwardParams>;
        switch (plan.vecs) {
          case 1: return rows(&rows_kernel<Op, 1, 4>);
          case 2: return rows(&rows_kernel < Op, 2, kBackward ? 2 : 4 >);
          case 4: return rows(&rows_kernel < Op, 4, kBackward ? 1 : 2 >);
          default:
            if constexpr (!kBackward) return rows(&rows_kernel<Op, 8, 1>);
        }
      }
      break;
    case Kernel::block_row:
      return launch(&block_row_kernel<Op>, config("softmax block_row", plan, stream), p);
    case Kernel::stream:
      if constexpr (Op::kReduces)
        return launch(&stream_kernel<Op, false>, config("softmax stream", plan, stream), p,
                      plan.slots);
      break;
    case Kernel::split: {
      const Launch c = config("softmax split", plan, stream);
      if constexpr (Op::kReduces)
        launch(&split_reduce_kernel<Op>, c, p, plan.blocks_per_row, plan.chunk);
      return launch(&split_write_kernel<Op>, c, p, plan.blocks_per_row, plan.chunk);
    }
    default: break;
  }
  fail("fastops.softmax: no kernel for this plan");
}

#ifdef FASTOPS_CUDA_SM90
// Defined in cluster.cu and ring_*.cu, which only sm_90 compiles.
void run_cluster(const ForwardParams& p, const Plan& plan, bool full, void* stream);
void run_cluster(const BackwardParams& p, const Plan& plan, bool full, void* stream);
template <typename In>
void run_ring(const ForwardParams& p, const Plan& plan, void* stream);
template <typename In>
void run_ring(const BackwardParams& p, const Plan& plan, void* stream);
#else
template <typename In, typename Params>
void run_ring(const Params&, const Plan&, void*) {
  fail("fastops.softmax: this build has no sm_90 kernels");
}
template <typename Params>
void run_cluster(const Params&, const Plan&, bool, void*) {
  fail("fastops.softmax: this build has no sm_90 kernels");
}
#endif

template <typename In>
void run_forward(const ForwardParams& p, const Plan& plan, bool full, void* stream) {
  const bool log = p.kind != Kind::softmax;
  if (plan.kernel == Kernel::cluster) return run_cluster(p, plan, full, stream);
  if constexpr (sizeof(In) < 8)
    if (plan.kernel == Kernel::ring) return run_ring<In>(p, plan, stream);
  if (plan.kernel == Kernel::column)
    return launch(&column_forward_kernel<In>, config("softmax column", plan, stream), p, plan.lanes,
                  plan.parts);
  if (log) {
    return full ? run_contiguous<Forward<In, true, true>>(p, plan, stream)
                : run_contiguous<Forward<In, true, false>>(p, plan, stream);
  }
  return full ? run_contiguous<Forward<In, false, true>>(p, plan, stream)
              : run_contiguous<Forward<In, false, false>>(p, plan, stream);
}

template <typename In>
void run_backward(const BackwardParams& p, const Plan& plan, bool full, void* stream) {
  if (plan.kernel == Kernel::cluster) return run_cluster(p, plan, full, stream);
  if constexpr (sizeof(In) < 8)
    if (plan.kernel == Kernel::ring) return run_ring<In>(p, plan, stream);
  if (plan.kernel == Kernel::column)
    return launch(&column_backward_kernel<In>, config("softmax column backward", plan, stream), p,
                  plan.lanes, plan.parts);
  if (p.kind == Kind::logsumexp) {
    return full ? run_contiguous<LseBackward<In, true>>(p, plan, stream)
                : run_contiguous<LseBackward<In, false>>(p, plan, stream);
  }
  if (p.kind == Kind::log_softmax) {
    return full ? run_contiguous<Backward<In, true, true>>(p, plan, stream)
                : run_contiguous<Backward<In, true, false>>(p, plan, stream);
  }
  return full ? run_contiguous<Backward<In, false, true>>(p, plan, stream)
              : run_contiguous<Backward<In, false, false>>(p, plan, stream);
}

}  // namespace fastops::softmax::cuda
