// The gradient of the kept values: dw[o, q] = sum over rows of grad[r, o] * x[r, index of q].
// Both are packed with rows in lanes; an output's gradient stays in registers while it meets the
// activations of a block of features, which stay in L1.
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "nm/cpu/activations.h"
#include "nm/cpu/heuristics.h"
#include "nm/cpu/kernels.h"
#include "nm/cpu/packing.h"
#include "nm/indices.h"

namespace fastops::nm::cpu::FASTOPS_ISA {
namespace {

using fastops::cpu::parallel_for;

constexpr int kLanes = VecF32::size;
constexpr int kVectors = 4;  // of rows taken together
constexpr int64_t kRows = kVectors * kLanes;
constexpr int64_t kOutputs = 64;  // of a task
constexpr int64_t kFeatures = 64;

template <typename T>
class WeightGrad {
 public:
  explicit WeightGrad(const WeightGradParams& p)
      : p_(p),
        bits_(index_bits(p.weight.pattern.m)),
        block_groups_(kFeatures / p.weight.pattern.m),
        row_blocks_(ceil_div(p.x.count, kRows)) {}

  void run() {
    const Weight& w = p_.weight;
    const int64_t x_size = row_blocks_ * kRows * w.in, grad_size = row_blocks_ * kRows * w.out;
    const int64_t tasks = ceil_div(w.out, kOutputs), threads = fastops::cpu::num_threads();
    const int64_t slots = tasks < threads ? tasks : threads;
    const int64_t slot_size = round_up(kOutputs * w.kept(), 16);
    x_ = static_cast<float*>(
        fastops::cpu::thread_scratch(size_t(x_size + grad_size + slots * slot_size) * 4));
    grad_ = x_ + x_size;
    float* const slots_at = grad_ + grad_size;
    parallel_for(0, row_blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t left = p_.x.count - b * kRows, rows = left < kRows ? left : kRows;
        pack_features<T>(p_.x, b * kRows, rows, kRows, 0, w.in, x_ + b * kRows * w.in);
        pack_features<T>(p_.grad, b * kRows, rows, kRows, 0, w.out, grad_ + b * kRows * w.out);
      }
    });
    parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot)
        for (int64_t t = slot * tasks / slots; t < (slot + 1) * tasks / slots; ++t)
          run_task(t * kOutputs, slots_at + slot * slot_size);
    });
  }

 private:
  void run_task(int64_t output, float* sums) const {
    const Weight& w = p_.weight;
    const int64_t left = w.out - output, outputs = left < kOutputs ? left : kOutputs;
    for (int64_t i = 0; i < outputs * w.kept(); ++i) sums[i] = 0;
    for (int64_t b = 0; b < row_blocks_; ++b)
      for (int64_t g = 0; g < w.groups(); g += block_groups_)
        for (int64_t o = 0; o < outputs; ++o) add(output + o, b, g, sums + o * w.kept());
    T* dw = static_cast<T*>(p_.dw) + output * w.kept();
    const int64_t size = outputs * w.kept();
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) VecF32::load(sums + i).store(dw + i);
    VecF32::load(sums + i, int(size - i)).store(dw + i, int(size - i));
  }

  // Adds the products of one block of rows for the kept elements of block_groups_ groups.
  void add(int64_t output, int64_t row_block, int64_t group, float* sums) const {
    const Weight& w = p_.weight;
    const auto [n, m] = w.pattern;
    const uint8_t* indices = p_.indices + output * w.index_row_bytes();
    const float* x = x_ + row_block * kRows * w.in;
    const float* grad = grad_ + (row_block * w.out + output) * kRows;
    VecF32 g[kVectors];
    for (int v = 0; v < kVectors; ++v) g[v] = VecF32::load(grad + v * kLanes);
    const int64_t groups = w.groups() - group < block_groups_ ? w.groups() - group : block_groups_;
    const int64_t end = (group + groups) * n;
    for (int64_t q = group * n; q < end; q += kLanes) {
      const int count = int(end - q < kLanes ? end - q : kLanes);
      VecF32 product[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        product[i] = VecF32(0.f);
        if (i >= count) continue;
        const float* from = x + ((q + i) / n * m + stored_index(indices, q + i, bits_, m)) * kRows;
        for (int v = 0; v < kVectors; ++v)
          product[i] = fma(g[v], VecF32::load(from + v * kLanes), product[i]);
      }
      const VecF32 sum = transpose_reduce(product, [](VecF32 a, VecF32 b) { return a + b; });
      (VecF32::load(sums + q, count) + sum).store(sums + q, count);
    }
  }

  const WeightGradParams& p_;
  const int bits_;
  const int64_t block_groups_, row_blocks_;
  float *x_ = nullptr, *grad_ = nullptr;
};

}  // namespace

void weight_grad(const WeightGradParams& p) {
  with_element(p.x.dtype, [&](auto t) { WeightGrad<decltype(t)>(p).run(); });
}

}  // namespace fastops::nm::cpu::FASTOPS_ISA
