// From a problem to the kernels of its element type.
#include "cuda/hopper.h"
#include "nm/cuda/matmul.h"

namespace fastops::nm::cuda {

Kind choose_kind(const Weight& weight, DType dtype, int64_t, bool transposed, void*) {
  return plan_kind(weight.pattern, dtype, transposed);
}

namespace {

// Whether TMA can address the rows: a matrix, 16-byte steps.
bool mappable(const Rows& x) {
  const auto size = static_cast<int64_t>(size_of(x.dtype));
  return x.dims == 1 && x.features > 0 && x.feature_stride == 1 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[0] * size % 16 == 0 &&
         x.stride[0] >= x.features && x.count <= INT32_MAX / 2;
}

}  // namespace

SparsePlan plan_of(const MatmulParams& p) {
  const auto device = fastops::cuda::device_info();
  return plan_sparse(p.weight.out, p.weight.in, p.x.count, device.sm_count,
                     fastops::cuda::hopper_enabled(device) && mappable(p.x));
}

size_t matmul_workspace(const MatmulParams& p) {
  if (p.kind != Kind::sparse_tiles) return 0;
  const SparsePlan plan = plan_of(p);
  const int64_t sums = plan.splits > 1 ? plan.splits * p.x.count * p.weight.out : 0;
  return static_cast<size_t>(sums) * sizeof(float);
}

void matmul(const MatmulParams& p, void* stream) {
  switch (p.kind) {
    case Kind::sparse_tiles:
      if (p.x.dtype == DType::f16) return run_sparse_f16(p, stream);
      if (p.x.dtype == DType::bf16) return run_sparse_bf16(p, stream);
      break;
    case Kind::stored:
    case Kind::stored_transposed:
      if (p.x.dtype == DType::f16) return run_dense_f16(p, stream);
      if (p.x.dtype == DType::bf16) return run_dense_bf16(p, stream);
      return run_dense_f32(p, stream);
    default: break;
  }
  fail("fastops._nm_matmul: no such packing on CUDA");
}

void weight_grad(const WeightGradParams& p, void* stream) {
  if (p.x.dtype == DType::f16) return run_weight_grad_f16(p, stream);
  if (p.x.dtype == DType::bf16) return run_weight_grad_bf16(p, stream);
  run_weight_grad_f32(p, stream);
}

}  // namespace fastops::nm::cuda
