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
    simt::Tensor tensor{
        name, operand.data, 0, size_of(operand.dtype), access, access == Access::write, {}, {}};
    int64_t last = 0;
    auto walk = [&](int dims, const int64_t* sizes, const int64_t* strides) {
      for (int d = 0; d < dims; ++d) {
        tensor.sizes.push_back(sizes[d]);
        tensor.strides.push_back(strides[d]);
        last += (sizes[d] - 1) * strides[d];
      }
    };
    walk(shape_.row_dims, shape_.row_size, operand.row_stride);
    if (reduced) walk(shape_.reduce_dims, shape_.reduce_size, operand.reduce_stride);
    tensor.bytes = size_t(last + 1) * tensor.element_bytes;
    tensors_.add(tensor);
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
