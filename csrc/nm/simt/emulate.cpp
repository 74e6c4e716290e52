#include "nm/simt/emulate.h"

#include <vector>

#include "simt/tensors.h"

namespace fastops::nm::emulated {
namespace {

using simt::Access;

class Operands : public simt::Tensors {
 public:
  void whole(const char* name, const void* data, size_t bytes, size_t element, Access access) {
    if (data && bytes) add({name, data, bytes, element, access, access == Access::write, {}, {}});
  }
  void matrix(const char* name, const Matrix& a, const Weight& w) {
    add(name, a.data, size_of(a.dtype), {w.out, w.in}, {a.row_stride, a.col_stride}, Access::read);
  }
  void rows(const char* name, const Rows& x) {
    std::vector<int64_t> sizes(x.size, x.size + x.dims), strides(x.stride, x.stride + x.dims);
    sizes.push_back(x.features);
    strides.push_back(x.feature_stride);
    add(name, x.data, size_of(x.dtype), sizes, strides, Access::read);
  }
};

size_t value_bytes(const Weight& w, DType dtype) {
  return size_t(w.out * w.kept()) * size_of(dtype);
}
size_t index_bytes(const Weight& w) { return size_t(w.out * w.index_row_bytes()); }

}  // namespace

Kind choose_kind(const Weight& weight, DType dtype, int64_t rows, bool transposed) {
  return cuda::choose_kind(weight, dtype, rows, transposed, nullptr);
}

void select(const SelectParams& p) {
  Operands operands;
  const size_t elements = size_t(p.weight.out * p.weight.in);
  operands.matrix("w", p.w, p.weight);
  operands.matrix("scores", p.scores, p.weight);
  operands.whole("mask", p.mask, elements, 1, Access::write);
  operands.whole("pruned", p.pruned, elements * size_of(p.w.dtype), size_of(p.w.dtype),
                 Access::write);
  operands.run(p, cuda::select);
}

void compress(const CompressParams& p) {
  Operands operands;
  operands.matrix("w", p.w, p.weight);
  operands.matrix("mask", p.mask, p.weight);
  operands.whole("values", p.values, value_bytes(p.weight, p.w.dtype), size_of(p.w.dtype),
                 Access::write);
  operands.whole("indices", p.indices, index_bytes(p.weight), 1, Access::write);
  operands.whole("bad", p.bad, 8, 8, Access::write);
  operands.run(p, cuda::compress);
}

void decompress(const DecompressParams& p) {
  Operands operands;
  const size_t size = size_of(p.dtype);
  operands.whole("values", p.values, value_bytes(p.weight, p.dtype), size, Access::read);
  operands.whole("indices", p.indices, index_bytes(p.weight), 1, Access::read);
  operands.whole("w", p.w, size_t(p.weight.out * p.weight.in) * size, size, Access::write);
  operands.run(p, cuda::decompress);
}

void check(const CheckParams& p) {
  Operands operands;
  operands.whole("indices", p.indices, index_bytes(p.weight), 1, Access::read);
  operands.whole("bad", p.bad, 8, 8, Access::write);
  operands.run(p, cuda::check);
}

PackSizes pack_sizes(PackParams& p) { return cuda::pack_sizes(p, nullptr); }

void pack(const PackParams& p) {
  Operands operands;
  PackParams sized = p;
  const PackSizes sizes = cuda::pack_sizes(sized, nullptr);
  operands.whole("indices", p.indices, index_bytes(p.weight), 1, Access::read);
  operands.whole("structure", p.structure, size_t(sizes.structure), 2, Access::write);
  operands.whole("source", p.source, size_t(sizes.source) * 4, 4, Access::write);
  operands.run(p, cuda::pack);
}

void gather(const GatherParams& p) {
  Operands operands;
  const size_t size = size_of(p.dtype);
  operands.whole("values", p.values, size_t(p.count) * size, size, Access::read);
  operands.whole("source", p.source, size_t(p.size) * 4, 4, Access::read);
  operands.whole("weights", p.weights, size_t(p.size) * size, size, Access::write);
  operands.run(p, cuda::gather);
}

void matmul(const MatmulParams& given) {
  Operands operands;
  MatmulParams p = given;
  const size_t size = size_of(p.x.dtype);
  PackSizes sizes{int64_t(index_bytes(p.weight)), p.weight.out * p.weight.kept()};
  if (p.kind == Kind::sparse_tiles) {
    PackParams packing{p.weight, p.kind};
    sizes = cuda::pack_sizes(packing, nullptr);
  }
  operands.rows("x", p.x);
  operands.whole("weights", p.weights, size_t(sizes.source) * size, size, Access::read);
  operands.whole("structure", p.structure, size_t(sizes.structure), 1, Access::read);
  operands.whole("bias", p.bias, size_t(p.outputs()) * size, size, Access::read);
  operands.whole("y", p.y, size_t(p.x.count * p.outputs()) * size, size, Access::write);
  p.workspace = operands.workspace(cuda::matmul_workspace(p));
  operands.run(p, cuda::matmul);
}

void weight_grad(const WeightGradParams& p) {
  Operands operands;
  operands.rows("grad", p.grad);
  operands.rows("x", p.x);
  operands.whole("indices", p.indices, index_bytes(p.weight), 1, Access::read);
  operands.whole("dw", p.dw, value_bytes(p.weight, p.x.dtype), size_of(p.x.dtype), Access::write);
  operands.run(p, cuda::weight_grad);
}

}  // namespace fastops::nm::emulated
