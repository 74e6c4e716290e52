#include "cuda/launch.h"
#include "merge/cuda/launch.h"
#include "merge/cuda/plan.cuh"

namespace fastops::merge::cuda {
namespace {

fastops::cuda::Launch config(const char* name, int64_t batch, void* stream) {
  return {name, dim3(unsigned(batch)), dim3(kPlanThreads), 0, 1, stream};
}

}  // namespace

void plan(const PlanParams& p, void* stream) {
  launch(&plan_kernel, config("merge plan", p.batch, stream), p);
}
void compose(const ComposeParams& p, void* stream) {
  launch(&compose_kernel, config("merge compose", p.batch, stream), p);
}
void select(const SelectParams& p, void* stream) {
  launch(&select_kernel, config("merge select", p.batch, stream), p);
}

}  // namespace fastops::merge::cuda
