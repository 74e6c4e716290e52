// Declaring a problem of the family to the emulator's checks.
#pragma once

#include <vector>

#include "simt/tensors.h"
#include "softmax/softmax.h"

namespace fastops::softmax::emulated {
namespace {

using simt::Access;

// Declares the operands of one problem.
class Operands : public simt::Tensors {
 public:
  explicit Operands(const Shape& shape) : shape_(shape) {}

  void full(const char* name, const Operand& operand, Access access) {
    add(name, operand, access, true);
  }
  void per_row(const char* name, const Operand& operand, Access access) {
    add(name, operand, access, false);
  }

  // k elements per row, `stride` apart.
  void chosen(const char* name, const Operand& operand, int64_t stride, int64_t k, Access access) {
    add(name, operand, access, false, stride, k);
  }

 private:
  void add(const char* name, const Operand& operand, Access access, bool reduced,
           int64_t stride = 0, int64_t k = 1) {
    if (!operand) return;
    std::vector<int64_t> sizes(shape_.row_size, shape_.row_size + shape_.row_dims);
    std::vector<int64_t> strides(operand.row_stride, operand.row_stride + shape_.row_dims);
    if (reduced) {
      const int dims = shape_.reduce_dims;
      sizes.insert(sizes.end(), shape_.reduce_size, shape_.reduce_size + dims);
      strides.insert(strides.end(), operand.reduce_stride, operand.reduce_stride + dims);
    }
    if (k > 1) {
      sizes.push_back(k);
      strides.push_back(stride);
    }
    Tensors::add(name, operand.data, size_of(operand.dtype), sizes, strides, access);
  }

  const Shape& shape_;
};

template <typename Params>
void add_scores(Operands& operands, const Params& p) {
  operands.full("mask", p.mask, Access::read);
  operands.full("bias", p.bias, Access::read);
  operands.per_row("lengths", p.lengths, Access::read);
  operands.per_row("row_scale", p.row_scale, Access::read);
}

}  // namespace
}  // namespace fastops::softmax::emulated
