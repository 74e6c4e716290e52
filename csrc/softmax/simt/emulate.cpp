#include "softmax/simt/emulate.h"

#include <vector>

#include "simt/tensors.h"

namespace fastops::softmax::cuda {
namespace {

using simt::Access;

// Declares the operands of one problem.
class Operands {
 public:
  explicit Operands(const Shape& shape) : shape_(shape) {}

  void full(const char* name, const Operand& operand, Access access) {
    add(name, operand, access, true);
  }
  void per_row(const char* name, const Operand& operand, Access access) {
    add(name, operand, access, false);
  }

  void require_written() const { tensors_.require_written(); }

  // Scratch holds nothing a kernel may rely on, so it starts as NaN.
  void* workspace(size_t bytes) {
    if (bytes == 0) return nullptr;
    workspace_.assign((bytes + 7) / 8, __builtin_nan(""));
    tensors_.add({"workspace", workspace_.data(), bytes, 4, Access::write, false, {}, {}});
    return workspace_.data();
  }

 private:
  void add(const char* name, const Operand& operand, Access access, bool reduced) {
    if (!operand) return;
    std::vector<int64_t> sizes(shape_.row_size, shape_.row_size + shape_.row_dims);
    std::vector<int64_t> strides(operand.row_stride, operand.row_stride + shape_.row_dims);
    if (reduced) {
      const int dims = shape_.reduce_dims;
      sizes.insert(sizes.end(), shape_.reduce_size, shape_.reduce_size + dims);
      strides.insert(strides.end(), operand.reduce_stride, operand.reduce_stride + dims);
    }
    tensors_.add(name, operand.data, size_of(operand.dtype), sizes, strides, access);
  }

  const Shape& shape_;
  simt::Tensors tensors_;
  std::vector<double> workspace_;
};

template <typename Params>
void add_scores(Operands& operands, const Params& p) {
  operands.full("mask", p.mask, Access::read);
  operands.full("bias", p.bias, Access::read);
  operands.per_row("lengths", p.lengths, Access::read);
  operands.per_row("row_scale", p.row_scale, Access::read);
}

}  // namespace

void emulate(ForwardParams& p) {
  Operands operands(p.shape);
  operands.full("x", p.x, Access::read);
  operands.full("out", p.out, Access::write);
  operands.per_row("lse", p.lse, Access::write);
  add_scores(operands, p);
  p.workspace = operands.workspace(forward_workspace(p));
  forward(p, nullptr);
  operands.require_written();
}

void emulate(BackwardParams& p) {
  Operands operands(p.shape);
  operands.full("y", p.y, Access::read);
  operands.full("dy", p.dy, Access::read);
  operands.full("dx", p.dx, Access::write);
  operands.per_row("dlse", p.dlse, Access::read);
  operands.per_row("lse", p.lse, Access::read);
  add_scores(operands, p);
  p.workspace = operands.workspace(backward_workspace(p));
  backward(p, nullptr);
  operands.require_written();
}

}  // namespace fastops::softmax::cuda
